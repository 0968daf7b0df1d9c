from __future__ import annotations

import pytest

from modalign.demo import target
from modalign.errors import ModelError


def test_another_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "SHA256", "0" * 64)
    with pytest.raises(ModelError, match="reinstall"):
        target.target()
