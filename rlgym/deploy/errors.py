"""What can be wrong on the way to a robot; each message names the fix."""


class DeployError(ValueError):
    """A mistake that a person can mend; the command prints it as one line."""


class BundleError(DeployError):
    """A bundle that is incomplete, changed, hostile, or made for another robot."""


class FaultError(DeployError):
    """A guard that tripped; it stays so until `reset`."""
