"""Environment parameters: fixed, drawn at random by the player, or raised by a curriculum.

They are written as in ML-Agents' own files (`environment_parameters`), so that these can be pasted:

    env:
      parameters:
        gravity: 9.81
        mass: {sampler_type: uniform, sampler_parameters: {min_value: 0.5, max_value: 2}}
        wall_height:
          curriculum:
            - name: low
              completion_criteria: {measure: reward, threshold: 0.8, min_lesson_length: 100}
              value: 1.0
            - name: any
              value: {sampler_type: uniform, sampler_parameters: {min_value: 0, max_value: 4}}

https://github.com/Unity-Technologies/ml-agents/blob/release_20/docs/Training-ML-Agents.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlgym.errors import ConfigError
from rlgym.settings import suggest

KINDS = {"uniform": 0, "gaussian": 1, "multirangeuniform": 2}
"""Unity's samplers by their names in its files, and its numbers for them."""
MEASURES = ("reward", "progress", "steps")
"""What a lesson can be judged by: the mean return of the latest episodes, the share of the run's
steps that are done, or the number of steps."""
SMOOTHING = 0.25
"""Share of the mean before in the smoothed mean, as ML-Agents has it."""


@dataclass(frozen=True)
class Sampler:
    """A distribution that the player draws a parameter from, at its own resets."""

    kind: str
    """uniform: (min, max); gaussian: (mean, deviation); multirangeuniform: (min, max, ...)."""
    numbers: tuple[float, ...]

    @property
    def number(self) -> int:
        """Unity's number of the kind."""
        return KINDS[self.kind]


@dataclass(frozen=True)
class Lesson:
    """One value of a curriculum, and what must be reached to go on to the next."""

    name: str
    value: float | Sampler
    measure: str = ""
    """One of `MEASURES`; empty for the last lesson, which has no end."""
    threshold: float = 0.0
    min_episodes: int = 0
    smoothing: bool = True


class Curriculum:
    """A parameter that goes through lessons.

    Args:
        name: of the parameter.
        lessons: in order.

    Attributes:
        index: the lesson that it stands at.
    """

    def __init__(self, name: str, lessons: tuple[Lesson, ...]) -> None:
        self.name = name
        self.lessons = lessons
        self.index = 0
        self._smoothed: float | None = None
        self._returns: deque[float] = deque(maxlen=max(1, self.lesson.min_episodes))
        self._episodes = 0

    @property
    def lesson(self) -> Lesson:
        """The lesson that it stands at."""
        return self.lessons[self.index]

    def go_to(self, index: int) -> None:
        """Stand at another lesson, at its beginning."""
        self.index = min(max(index, 0), len(self.lessons) - 1)
        self._returns = deque(maxlen=max(1, self.lesson.min_episodes))
        self._episodes = 0
        self._smoothed = None

    def add(self, episode_return: float) -> None:
        """Count an episode."""
        self._returns.append(episode_return)
        self._episodes += 1

    def advance(self, steps: int, total_steps: int | None) -> bool:
        """Go on to the next lesson when this one's end is reached; True when it was."""
        lesson = self.lesson
        if not lesson.measure or self._episodes < lesson.min_episodes:
            return False
        if lesson.measure == "reward":
            if not self._returns:
                return False
            mean = sum(self._returns) / len(self._returns)
            if lesson.smoothing and self._smoothed is not None:
                mean = SMOOTHING * self._smoothed + (1.0 - SMOOTHING) * mean
            self._smoothed = mean
            reached = mean > lesson.threshold
        elif lesson.measure == "steps":
            reached = steps >= lesson.threshold
        else:
            reached = total_steps is not None and steps / total_steps > lesson.threshold
        if reached:
            self.go_to(self.index + 1)
        return reached


class Parameters:
    """All environment parameters of a world, and where their curricula stand.

    Args:
        settings: name -> number, sampler or curriculum, as in a file.
        total_steps: of the run; lessons that are judged by progress need it.
        at_end: let every curriculum stand at its last lesson, as scores are taken.

    Attributes:
        steps: environment steps so far.

    Raises:
        ConfigError: a setting that ML-Agents does not have, or that has no meaning.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        total_steps: int | None = None,
        at_end: bool = False,
    ) -> None:
        self.steps = 0
        self._total_steps = total_steps
        self._values: dict[str, float | Sampler] = {}
        self.curricula: dict[str, Curriculum] = {}
        for name, setting in (settings or {}).items():
            if not str(name).isascii():
                raise ConfigError(f"env.parameters: {name!r} is not ASCII, which Unity asks for")
            if isinstance(setting, Mapping) and "curriculum" in setting:
                self.curricula[name] = curriculum = Curriculum(name, _lessons(name, setting))
                if at_end:
                    curriculum.go_to(len(curriculum.lessons) - 1)
                elif total_steps is None and any(
                    lesson.measure == "progress" for lesson in curriculum.lessons
                ):
                    raise ConfigError(
                        f"env.parameters.{name} is judged by progress, which needs the length of "
                        "the run: pass total_steps, or use measure: steps"
                    )
            else:
                self._values[name] = _value(f"env.parameters.{name}", setting)

    def values(self) -> dict[str, float | Sampler]:
        """What every parameter is now."""
        return self._values | {name: one.lesson.value for name, one in self.curricula.items()}

    def count(self, steps: int, returns: list[float]) -> dict[str, float | Sampler]:
        """Count steps and the episodes that ended; the parameters that have changed by it."""
        self.steps += steps
        if not self.curricula:
            return {}
        for curriculum in self.curricula.values():
            for episode_return in returns:
                curriculum.add(episode_return)
        return {
            name: curriculum.lesson.value
            for name, curriculum in self.curricula.items()
            if (returns or curriculum.lesson.measure != "reward")
            and curriculum.advance(self.steps, self._total_steps)
        }


def _lessons(name: str, setting: Mapping[str, Any]) -> tuple[Lesson, ...]:
    where = f"env.parameters.{name}"
    entries = setting["curriculum"]
    if isinstance(entries, Mapping):  # a single lesson, as ML-Agents allows
        entries = [entries]
    if not isinstance(entries, (list, tuple)) or not entries or len(setting) != 1:
        raise ConfigError(f"{where}.curriculum must be a list of lessons, and stand alone")
    lessons = []
    for index, entry in enumerate(entries):
        place = f"{where}.curriculum[{index}]"
        _known(place, entry, ("name", "value", "completion_criteria"))
        if "value" not in entry:
            raise ConfigError(f"{place} has no value: give a number or a sampler")
        value = _value(f"{place}.value", entry["value"])
        criteria = entry.get("completion_criteria")
        last = index == len(entries) - 1
        if criteria is None and not last:
            raise ConfigError(f"{place} has no completion_criteria, so no lesson follows it")
        criteria = {} if last or criteria is None else criteria
        lessons.append(_lesson(place, str(entry.get("name", index)), value, criteria))
    return tuple(lessons)


def _lesson(place: str, name: str, value: float | Sampler, criteria: Mapping[str, Any]) -> Lesson:
    if not criteria:
        return Lesson(name, value)
    # `behavior` and `require_reset` are accepted for pasted files: there is one behaviour, and a
    # parameter counts from the agents' next resets on.
    known = ("measure", "threshold", "min_lesson_length", "signal_smoothing")
    _known(f"{place}.completion_criteria", criteria, (*known, "behavior", "require_reset"))
    measure = criteria.get("measure", "reward")
    if measure not in MEASURES:
        raise ConfigError(f"{place}: there is no measure {measure!r}: {suggest(measure, MEASURES)}")
    return Lesson(
        name,
        value,
        measure,
        _number(f"{place}.threshold", criteria.get("threshold")),
        int(_number(f"{place}.min_lesson_length", criteria.get("min_lesson_length", 0))),
        bool(criteria.get("signal_smoothing", True)),
    )


def _value(where: str, setting: Any) -> float | Sampler:
    if not isinstance(setting, Mapping):
        return _number(where, setting)
    _known(where, setting, ("sampler_type", "sampler_parameters"))
    kind, given = setting.get("sampler_type"), setting.get("sampler_parameters")
    if kind not in KINDS:
        raise ConfigError(
            f"{where}: there is no sampler_type {kind!r}: {suggest(str(kind), KINDS)}"
        )
    names = {
        "uniform": ("min_value", "max_value"),
        "gaussian": ("mean", "st_dev"),
        "multirangeuniform": ("intervals",),
    }[kind]
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise ConfigError(f"{where}: sampler_parameters of {kind} are {' and '.join(names)}")
    if kind != "multirangeuniform":
        numbers = tuple(_number(f"{where}.{name}", given[name]) for name in names)
        pairs = [numbers]
    else:
        intervals = given["intervals"]
        if not isinstance(intervals, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in intervals
        ):
            raise ConfigError(f"{where}: intervals are pairs: [[0, 1], [3, 4]]")
        pairs = [tuple(_number(f"{where}.intervals", one) for one in pair) for pair in intervals]
        numbers = tuple(number for pair in pairs for number in pair)
    if kind != "gaussian" and any(low > high for low, high in pairs):
        raise ConfigError(f"{where}: the lower bound is above the upper one")
    return Sampler(kind, numbers)


def _known(where: str, setting: Any, names: tuple[str, ...]) -> None:
    if not isinstance(setting, Mapping):
        raise ConfigError(f"{where} must have the settings {', '.join(names)}")
    for name in setting:
        if name not in names:
            raise ConfigError(f"{where} has no setting {name!r}: {suggest(str(name), names)}")


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where} must be a number, it is {value!r}")
    return float(value)
