"""The errors a person can cause, each worded so that its one line names the fix."""


class UserError(ValueError):
    """A person's mistake; the command line prints it as one line, exit status 2."""


class ConfigError(UserError):
    """A setting that does not exist or has the wrong type."""


class SpaceError(UserError, TypeError):
    """A space that is not supported, or a value that does not belong to its space."""


class WorldError(UserError):
    """A world that cannot be found, built or stepped."""


class ContractError(UserError):
    """A vector env, or a world, that breaks the contract it declares."""


class StateError(UserError, RuntimeError):
    """A call out of order: receiving before sending, sending twice, using what is closed."""


class DeviceError(UserError, RuntimeError):
    """A device that is not there, or cannot do what was asked."""


class CheckpointError(UserError):
    """A checkpoint that is absent, incomplete, edited, or made for another policy."""


class ClipError(UserError):
    """A reference motion that is damaged, does not fit the robot, or must not be passed on."""


class PeerLostError(UserError, RuntimeError):
    """A process, or an actor, that trained the same policy and is gone."""


class MissingExtraError(UserError, ImportError):
    """An optional package that is not installed; the message names the extra that brings it."""
