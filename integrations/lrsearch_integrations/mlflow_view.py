"""Three saved views for the MLflow UI, with the columns and charts of a learning-rate study.

Without them the table shows neither learning rate nor loss. "Studies" has the trials folded below
their studies; "trials" has ExpTest's alone, because MLflow charts only what is unfolded;
"comparison" has them beside the grid's, and whatever else was trained at the same task. The
format is MLflow's own and not documented (seen in 3.17): experiment tags named
``mlflow.sharedViewState.<id>``. A later MLflow that does not know it shows its usual table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from lrsearch_integrations.mlflow_api import MlflowClient

STUDIES = "lrsearch-studies"
TRIALS = "lrsearch-trials"
COMPARISON = "lrsearch-comparison"
_TAG = "mlflow.sharedViewState."
_COLUMNS = (
    "tags.`lrsearch.method`",
    "tags.`lrsearch.trial_state`",
    "params.`lr`",
    "metrics.`train/lr`",
    "metrics.`train/loss`",
    "metrics.`val/loss`",
    "metrics.`test/accuracy`",
    "metrics.`window/pvalue`",
    "metrics.`steps`",
)
# Section, metric, scale of its axis. What a study lacks is not shown (hideEmptyCharts).
_CHARTS = (
    ("Training", "train/loss", "log"),
    # MLflow draws 320 points a curve: a spike shows here alone.
    ("Training", "train/loss_max", "log"),
    ("Training", "train/lr", "log"),
    ("Training", "val/loss", "log"),
    ("ExpTest windows", "window/pvalue", "log"),
    ("ExpTest windows", "window/f_statistic", "log"),
    ("ExpTest windows", "window/slope", "linear"),
    ("Lipschitz rates", "lipschitz/lr", "log"),
    ("Lipschitz rates", "lipschitz/constant", "log"),
    ("Lipschitz rates", "lipschitz/k_z", "log"),
)
# The page puts charts of all other metrics in sections of these names; folded, they are not drawn.
_FOLDED = ("train", "val", "test", "window", "Model metrics")
# Ordered by date, the page would fold the trials below their studies again.
_BY_LOSS = "metrics.`train/loss`"
# Key, name, which runs, by what they are ordered.
_VIEWS = (
    (STUDIES, "lrsearch: studies", "", "attributes.start_time"),
    (TRIALS, "lrsearch: trials", "tags.`lrsearch.kind` = 'trial'", _BY_LOSS),
    (
        COMPARISON,
        "lrsearch: comparison",
        "tags.`lrsearch.kind` != 'study' AND tags.`lrsearch.kind` != 'probe'",
        _BY_LOSS,
    ),
)


def install_views(client: MlflowClient, experiment_id: str) -> None:
    """Save the views with the experiment, unless they are there."""
    tags = client.get_experiment(experiment_id).tags
    now = int(time.time() * 1000)
    for view, name, search, order in _VIEWS:
        if _TAG + view not in tags:
            state = json.dumps(view_state(search, order))
            content = {"name": name, "createdAt": now, "updatedAt": now, "state": state}
            client.set_experiment_tag(experiment_id, _TAG + view, json.dumps(content))


def has_views(tags: Mapping[str, str]) -> bool:
    """Whether an experiment with these tags has the views."""
    return all(_TAG + view in tags for view, *_ in _VIEWS)


def view_state(search: str, order: str) -> dict[str, object]:
    """Return the state of the runs page, in the words of MLflow's own page."""
    sections = dict.fromkeys((section for section, _, _ in _CHARTS), True)
    sections |= dict.fromkeys(_FOLDED, False)
    return {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": order.startswith("metrics."),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "viewMaximized": False,
        "runListHidden": False,
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        "compareRunCharts": [_chart(*chart) for chart in _CHARTS],
        "compareRunSections": [
            {
                "uuid": section,
                "name": section,
                "display": displayed,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for section, displayed in sections.items()
        ],
    }


def _chart(section: str, metric: str, scale: str) -> dict[str, object]:
    return {
        "uuid": metric,
        "type": "LINE",
        "runsCountToCompare": 20,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "displayName": metric,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": scale,
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
