"""What becomes of a trained policy elsewhere: measured, drawn and filmed on one page."""
