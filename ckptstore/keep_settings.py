"""What the configuration says of folders' checkpoints: one `[[keep]]` table for each folder, or tier of it.

    [[keep]]
    folder = "/runs/gpt"
    policies = "latest:3 every-steps:1000"

    [[keep]]
    folder = "/runs/gpt"
    tier = "nvme"
    policies = ["within:1h"]
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from ckptstore.durations import parse_duration
from ckptstore.errors import InvalidInput
from ckptstore.paths import check_folder
from ckptstore.retention import Policy, parse_policies


def _in_words(value: object) -> object:
    return value.split() if isinstance(value, str) else value


class KeepSettings(BaseModel):
    """One `[[keep]]` table: `ckptstore keep`, said again at each start of a daemon."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(description="whose checkpoints are judged", examples=["/runs/gpt"])
    policies: Annotated[tuple[str, ...], BeforeValidator(_in_words)] = Field(
        description="what to keep, as `ckptstore keep` takes it", examples=["latest:3 every-steps:1000"]
    )
    tier: str = Field("", description="what stays in this tier; empty: in all that have no policies of their own", examples=["nvme"])
    safe_in: str = Field("", description="the tier that must hold a newer checkpoint first; empty: that tier, or the deepest")
    trash: Annotated[float, BeforeValidator(parse_duration), Field(ge=0, le=365 * 86400)] = Field(
        3600.0, description="how long what goes can be had back"
    )

    @property
    def parsed(self) -> tuple[Policy, ...]:
        return parse_policies(self.policies)

    @field_validator("folder")
    @classmethod
    def _is_a_folder(cls, folder: str) -> str:
        try:
            return check_folder(folder, operation="keep")
        except InvalidInput as error:
            raise ValueError(f"{error.why}: {folder!r}") from error

    @field_validator("policies")
    @classmethod
    def _are_policies(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parse_policies(words)
        except InvalidInput as error:
            raise ValueError(f"{error.why}; {error.hint}") from error
        return words
