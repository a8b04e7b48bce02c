"""A search whose answers and drifts are known: no model runs."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.progress import NoProgress
from alignez_bake.site import Site
from alignez_bake.tuning.candidate import Candidate, Planned
from alignez_bake.tuning.search import SearchSettings, search
from alignez_bake.tuning.state import tuning_state

QUERIES = 50
LUCK = np.random.default_rng(7).random(1000)


class World:
    """Candidates with planted rates and drifts; the same luck for all, so that rates are ordered answer by answer."""

    def __init__(self, base, candidates):
        """`candidates`: name -> (rate, KL), or a reason why there is no plan."""
        self.rates = {0.0: base}
        self.luck = defaultdict(lambda: LUCK)
        self.drifts = {}
        self.planned = []
        self.asked = {0.0: []}
        self.measured = []
        for number, (name, planted) in enumerate(candidates.items(), start=1):
            candidate = Candidate(name, RIDGE, MethodSettings(strength=float(number)), (0,))
            if isinstance(planted, str):
                self.planned.append(Planned(candidate, None, planted))
                continue
            self.rates[float(number)], self.drifts[float(number)] = planted
            self.asked[float(number)] = []
            edit = Edit(Site("mlp_write", 0), bias=np.ones(2), strength=float(number))
            self.planned.append(Planned(candidate, EditPlan((edit,)), None))

    def answer_values(self, plan, answers):
        key = plan.edits[0].strength if plan.edits else 0.0
        self.asked[key] += answers
        return [float(self.luck[key][number] < self.rates[key]) for number in answers]

    def drift(self, plan):
        self.measured.append(plan.edits[0].strength)
        return self.drifts[plan.edits[0].strength]

    def search(self, path=None, *, kl_budget=0.1, rounds=(32, 96, 300), beside=lambda _best: ()):
        with tuning_state(path, {"seed": 0}) as state:
            return search(
                self.planned,
                self.answer_values,
                self.drift,
                SearchSettings(QUERIES, kl_budget, 0, rounds),
                state,
                beside=beside,
                floors={"helpful": -1.0},
                progress=NoProgress(),
            )
