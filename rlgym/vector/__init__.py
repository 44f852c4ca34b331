"""Worlds behind one contract: many copies of an environment as one batch of tensors.

contract            what every vector env promises, and what all backends share
sync                the worlds in this process: the reference
process             the worlds in worker processes; workers/ has what is below it
slot, arrays        one world in its slot; the arrays that slots write to
snapshot            how an episode is written down and run again
crash               what is written down when a world or a worker is lost
wrappers, guard     changes to the batch; the guard against NaN
check/              the contract as tests that run on anyone's env
"""
