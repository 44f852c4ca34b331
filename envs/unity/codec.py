"""Messages of a player to arrays, and actions to messages: whole batches at a time.

    codec = Codec("player")
    player.send(codec.encode_reset())
    frame = codec.decode(player.recv())
    player.send(codec.encode({"3DBall": Actions(continuous=actions)}))

`reader` and `writer` do the work for each behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from rlgym.envs.unity import messages
from rlgym.envs.unity.frames import Actions, BehaviorSpec, Frame, ObservationSpec
from rlgym.envs.unity.pixels import picture_size
from rlgym.envs.unity.reader import AgentReader
from rlgym.envs.unity.writer import ActionWriter
from rlgym.errors import StateError, WorldError

STATUS_OK = 200
_RESET = 1
_GOAL = 1
_CHANNELS_FIRST, _CHANNELS_LAST = (1, 2, 2), (2, 2, 1)  # dimension properties of images


class Codec:
    """Translates for one player, and remembers what its behaviours look like.

    Args:
        name: how errors name the player.
        hybrid: whether the player knows the two lists of actions (capability `hybridActions`); an
            older one reads a list that both kinds share.

    Attributes:
        specs: the behaviours met so far, by name.
    """

    def __init__(self, name: str = "the player", *, hybrid: bool = True) -> None:
        self.name = name
        self.hybrid = hybrid
        self.specs: dict[str, BehaviorSpec] = {}
        self._readers: dict[str, AgentReader] = {}
        self._writers: dict[str, ActionWriter] = {}
        self._deciding: dict[str, int] = {}
        self._message = messages.fast_message("UnityMessageProto")

    def decode(self, data: bytes) -> Frame:
        """Read one message.

        Args:
            data: a serialized UnityMessageProto.

        Returns:
            Its content; the arrays are overwritten by the next `decode`.

        Raises:
            WorldError: it is no such message, or an observation is not as its behaviour promised.
        """
        try:
            output = self._message.FromString(data).unity_output
        except DecodeError as error:
            raise WorldError(f"{self.name} sent what is no message of Unity's protocol") from error
        said = output.rl_output
        lists = said.agentInfos
        new: tuple[BehaviorSpec, ...] = ()
        if output.HasField("rl_initialization_output"):
            brains = output.rl_initialization_output.brain_parameters
            new = tuple(
                self._introduce(brain, lists[brain.brain_name])
                for brain in brains
                if lists.get(brain.brain_name)
            )
        batches = {}
        deciding = {}
        for behavior in lists:
            agents = lists[behavior]
            if not agents:
                continue
            if behavior not in self._readers:
                raise WorldError(
                    f"{self.name} sent agents of '{behavior}' and never said what they observe: "
                    "is its ML-Agents package damaged?"
                )
            batches[behavior] = batch = self._readers[behavior].read(agents)
            deciding[behavior] = batch.num_deciding
        self._deciding = deciding
        return Frame(batches, new, said.side_channel)

    def _introduce(self, brain: Any, agents: bytes) -> BehaviorSpec:
        kind = messages.fast_message("UnityRLOutputProto.ListAgentInfoProto")
        try:
            spec = _behavior_spec(brain, kind.FromString(agents).value[0])
        except WorldError as error:
            raise WorldError(f"{self.name}: {error}") from error
        except DecodeError as error:
            raise WorldError(f"{self.name} sent what is no message of Unity's protocol") from error
        self.specs[spec.name] = spec
        self._readers[spec.name] = AgentReader(self.name, spec)
        self._writers[spec.name] = ActionWriter(spec, self.hybrid)
        return spec

    def encode(self, actions: Mapping[str, Actions], side_channel: bytes = b"") -> bytes:
        """Write the reply to the last message.

        Args:
            actions: for each behaviour with agents that wait for an action, one row each.
            side_channel: messages for the player's side channels.

        Returns:
            A serialized UnityMessageProto.

        Raises:
            StateError: a behaviour's agents get too few rows, too many or none.
            ContractError: an action has another width than the behaviour's.
        """
        message = self._reply(side_channel)
        table = message.unity_input.rl_input.agent_actions
        for behavior, waiting in self._deciding.items():
            if not waiting:
                continue
            if behavior not in actions:
                raise StateError(f"{waiting} agents of '{behavior}' wait for actions: give theirs")
            table[behavior] = self._writers[behavior].write(actions[behavior], waiting)
        return message.SerializeToString()

    def encode_reset(self, side_channel: bytes = b"") -> bytes:
        """Write the reply that begins a new episode for every agent."""
        message = self._reply(side_channel)
        message.unity_input.rl_input.command = _RESET
        return message.SerializeToString()

    def _reply(self, side_channel: bytes) -> Any:
        message = self._message()
        message.header.status = STATUS_OK
        message.unity_input.rl_input.SetInParent()  # Unity takes a reply without it for no reply
        if side_channel:
            message.unity_input.rl_input.side_channel = side_channel
        return message


# ------------------------------------------------------------------ what a behaviour looks like
def _behavior_spec(brain: Any, agent: Any) -> BehaviorSpec:
    """The spec that a behaviour's description and its first agent amount to."""
    action = brain.action_spec
    if action.num_continuous_actions or action.num_discrete_actions:
        continuous, branches = action.num_continuous_actions, action.discrete_branch_sizes
    elif brain.vector_action_space_type_deprecated == 1:  # packages before protocol 1.3
        continuous, branches = brain.vector_action_size_deprecated[0], ()
    else:
        continuous, branches = 0, brain.vector_action_size_deprecated
    return BehaviorSpec(
        name=brain.brain_name,
        observations=tuple(_observation_spec(obs) for obs in agent.observations),
        continuous=int(continuous),
        branches=tuple(int(size) for size in branches),
    )


def _observation_spec(obs: Any) -> ObservationSpec:
    shape, properties = tuple(obs.shape), tuple(obs.dimension_properties)
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise WorldError(f"observation '{obs.name}' has the shape {shape}; rlgym knows rank 1 to 3")
    compressed = obs.compression_type != 0
    return ObservationSpec(
        name=obs.name,
        shape=shape,
        dimension_properties=properties,
        goal=obs.observation_type == _GOAL,
        compressed=compressed,
        order=_order(obs, shape, properties) if len(shape) == 3 else "",
    )


def _order(obs: Any, shape: tuple[int, ...], properties: tuple[int, ...]) -> Any:
    """HWC or CHW.

    Unity changed from the first to the second with package 3, and no version number says which: the
    image itself does, then the properties of the axes; without either it is the older order.
    """
    if obs.compression_type != 0:
        size = picture_size(obs.compressed_data)
        last, first = size == shape[:2], size == shape[1:]
        if not last and not first:
            raise WorldError(
                f"observation '{obs.name}' is said to have the shape {shape} and comes as an image "
                f"of {size[0]} x {size[1]} pixels"
            )
        if last != first:
            return "HWC" if last else "CHW"
    if properties == _CHANNELS_FIRST:
        return "CHW"
    if properties == _CHANNELS_LAST:
        return "HWC"
    return "CHW" if shape[0] < min(shape[1:]) and shape[1] == shape[2] else "HWC"
