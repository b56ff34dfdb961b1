"""Energy of two networks side by side: the share that one saves, and why the figures may mislead."""

from __future__ import annotations

from svitc.energy.estimate import Energy, saving


def compare(energy: Energy, original: Energy) -> tuple[dict[str, float | None], list[str]]:
    """Compare the energy of a network with that of another, such as the original.

    Args:
        energy: of the network.
        original: of the other network.

    Returns:
        the shares saved, as from ``svitc.energy.estimate.saving``, and notes: one where the weights of the two are in
        different memories, since that is a large step of the table.
    """
    shares = saving(energy, original)
    same_memory = shares["total_same_memory"]
    if energy.weights_in == original.weights_in or same_memory is None:
        return shares, []
    return shares, [
        f"the weights lie in {energy.weights_in}, those of the other in {original.weights_in}, which the table prices "
        f"apart; with both in {energy.weights_in} {same_memory:.1%} of the total would be saved"
    ]
