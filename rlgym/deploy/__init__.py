"""What runs on the robot: numpy and onnxruntime, and nothing else of rlgym."""
