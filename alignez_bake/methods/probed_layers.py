"""A CCS probe at each layer, and which layers to edit by it: AlignEZ v1's choice, made once over all pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.methods.ccs_probe import ccs_probe
from alignez_bake.methods.layer_choice import smallest_losses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.methods.answer_rows import AnswerRows
    from alignez_bake.methods.ccs_probe import CcsProbe
    from alignez_bake.methods.protocol import JsonValue, MethodSettings
    from alignez_bake.site import Site


class ProbedLayers(NamedTuple):
    """The probe at each site, and why sites that are not to be edited are left out."""

    probes: Mapping[Site, CcsProbe]
    skipped: Mapping[Site, str]

    def figures(self, site: Site) -> dict[str, JsonValue]:
        """Of the site's probe, for reports; none where there is no probe."""
        return self.probes[site].figures() if site in self.probes else {}


NO_PROBES: Final = ProbedLayers({}, {})


def probed_layers(name: str, recorded: Mapping[Site, AnswerRows], settings: MethodSettings) -> ProbedLayers:
    """Search at each site, leave out the sites whose probe is of no use, and choose among the others.

    Args:
        name: of the method, for messages.
        recorded: activations by site.
        settings: `seed` and `top_layers`.

    Raises:
        BadInputError: a site without any spread, or no site whose probe is of use.
    """
    probes = {site: ccs_probe(site, rows, settings.seed) for site, rows in recorded.items()}
    useless = {site: probe.why_useless() for site, probe in probes.items()}
    skipped = {site: reason for site, reason in useless.items() if reason is not None}
    usable = {site: probe.loss for site, probe in probes.items() if site not in skipped}
    if not usable:
        first, reason = next(iter(skipped.items()))
        raise BadInputError(
            f"method {name!r} found no layer to edit: {first}: {reason}; use more pairs or another method"
        )
    choice = smallest_losses(usable, settings.top_layers)
    return ProbedLayers(probes, skipped | {site: choice.left_out for site in usable if site not in choice.sites})
