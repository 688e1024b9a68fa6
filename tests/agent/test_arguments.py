"""What the environment tells a gauge."""

from __future__ import annotations

import pytest

from forcegauge.arguments import DEFAULT_PORT, address


def test_kubernetes_link_in_the_place_of_the_port_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCEGAUGE_BIND", raising=False)
    monkeypatch.setenv("FORCEGAUGE_PORT", "tcp://10.96.0.30:8790")

    assert address(None, None) == ("127.0.0.1", DEFAULT_PORT)
    assert address("0.0.0.0", 9000) == ("0.0.0.0", 9000)
