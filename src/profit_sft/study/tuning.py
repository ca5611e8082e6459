"""The section `tune` of a study file: a setting whose value is chosen for every variant and model by the same tries."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeInt, model_validator

from profit_sft.study.study_file import Section, key_errors
from profit_sft.study.variants import OneOrMore, leave_the_studys_own


class Tuning(Section):
    """Values of one setting that every variant and model tries; the setting is the section's further key.

    Attributes:
        seed: Seeds that every value is tried with; what counts is the mean.
        evaluate: Settings of `profit eval` for the validation problems that judge them.
    """

    model_config = ConfigDict(extra="allow")

    seed: OneOrMore[NonNegativeInt] = Field(default=[0])
    evaluate: Annotated[dict[str, Any], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_setting(self) -> "Tuning":
        settings = self.model_extra or {}
        if len(settings) != 1:
            raise ValueError(
                " must name one flag of profit train with the values to try, such as learning_rate: [1.0e-5, 3.0e-5], "
                f"got {', '.join(map(str, settings)) or 'none'}."
            )
        leave_the_studys_own(settings)
        values = settings[self.setting]
        if not isinstance(values, list) or len(values) < 2:
            raise key_errors({self.setting: f" must be a list of two values or more to choose from, got {values!r}."})
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                hint = " YAML reads 1e-5 as text; write 1.0e-5." if isinstance(value, str) else ""
                raise key_errors({self.setting: f" must hold numbers, got {value!r}.{hint}"})
        for key, listed in ((self.setting, values), ("seed", self.seed)):
            for value in listed:
                if listed.count(value) > 1:
                    raise key_errors({key: f" holds {value!r} twice."})
        return self

    @property
    def setting(self) -> str:
        """The flag of `profit train`."""
        return str(next(iter(self.model_extra or {})))

    @property
    def values(self) -> tuple[float, ...]:
        """Its values, rising."""
        return tuple(sorted((self.model_extra or {})[self.setting]))

    def best(self, accuracies: Mapping[float, float]) -> float:
        """Return the value of the highest accuracy, of several the smallest.

        Example:
            >>> Tuning(learning_rate=[1e-5, 1e-4], evaluate={"tasks": ["gsm8k"]}).best({1e-4: 0.5, 1e-5: 0.5})
            1e-05
        """
        return min(accuracies, key=lambda value: (-accuracies[value], value))
