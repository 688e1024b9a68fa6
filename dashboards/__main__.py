"""Writes every generated file: dashboards, rules, and the copies that ship in the wheel."""

from __future__ import annotations

from dashboards.generate import write_all

write_all()
