"""doctor: a sound install is called sound, and one that is not is named."""

from __future__ import annotations

import pytest

from sightline.app import doctor as module
from sightline.app.doctor import BAD, doctor


def test_this_install_is_sound() -> None:
    found = doctor()
    assert found.sound, [check for check in found.checks if check.state == BAD]
    assert {"torch", "sightline:tabletop-clip"} <= {check.name for check in found.checks}


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CORE", ("torch", "a-library-nobody-has"))
    found = doctor()
    (bad,) = [check for check in found.checks if check.state == BAD]
    assert not found.sound and bad.name == "a-library-nobody-has" and "pip install" in bad.found
