"""A comparison of new rows with certifying ones, as a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lorchestra.metrics.monitoring import ERRORS, LARGE_PSI, LOSSES, Monitoring


def monitoring_table(monitoring: Monitoring) -> Table:
    """One line per quantity: what it was, what it is, how large the change is, and how likely by chance."""
    table = Table(box=SIMPLE_HEAD, caption=_caption(monitoring), caption_justify="left")
    table.add_column("Quantity")
    for title in ("Reference", "New", "PSI", "p-value", ""):
        table.add_column(title, justify="right")
    for name, shift in monitoring.shifts.items():
        means = ["" if mean is None else f"{mean:.3g}" for mean in (shift.reference, shift.new)]
        table.add_row(name, *means, f"{shift.psi:.2f}", _p_value(shift.p_value), _mark(monitoring, name))
    if LOSSES in monitoring.p_values:
        table.add_row(LOSSES, "", "", "", _p_value(monitoring.p_values[LOSSES]), _mark(monitoring, LOSSES))
    if monitoring.automated is not None:
        automated = monitoring.automated
        share = automated.errors / max(automated.num_automated, 1)
        cells = (f"{100 * automated.target_error:.3g} %", f"{100 * share:.1f} %", "")
        table.add_row(ERRORS, *cells, _p_value(monitoring.p_values[ERRORS]), _mark(monitoring, ERRORS))
    return table


def _caption(monitoring: Monitoring) -> str:
    return (
        f"Look {monitoring.look}, at the level {monitoring.level:.2g}: over all looks a false alarm has a probability"
        f" of at most {monitoring.false_alarm:g}. A distribution rings if its PSI is at least {LARGE_PSI:g}, too."
    )


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _mark(monitoring: Monitoring, name: str) -> str:
    if name in monitoring.reasons:
        return "alarm"
    return "small" if name in monitoring.significant else ""
