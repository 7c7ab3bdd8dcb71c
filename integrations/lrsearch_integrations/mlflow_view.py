"""Two saved views for the MLflow UI, with the columns and charts of a learning-rate study.

Without them the table shows neither learning rate nor loss. "Studies" has the trials folded below
their studies; "trials" has the trials alone, because MLflow charts only what is unfolded. The
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
_TAG = "mlflow.sharedViewState."
_COLUMNS = (
    "tags.`lrsearch.method`",
    "tags.`lrsearch.trial_state`",
    "metrics.`train/lr`",
    "metrics.`train/loss`",
    "metrics.`val/loss`",
    "metrics.`test/accuracy`",
    "metrics.`window/pvalue`",
)
# Section, metric, scale of its axis. What a study lacks is not shown (hideEmptyCharts).
_CHARTS = (
    ("Training", "train/loss", "log"),
    ("Training", "train/lr", "log"),
    ("Training", "val/loss", "log"),
    ("ExpTest windows", "window/pvalue", "log"),
    ("ExpTest windows", "window/f_statistic", "log"),
    ("ExpTest windows", "window/slope", "linear"),
    ("Lipschitz rates", "lipschitz/lr", "log"),
    ("Lipschitz rates", "lipschitz/constant", "log"),
    ("Lipschitz rates", "lipschitz/k_z", "log"),
)


def install_views(client: MlflowClient, experiment_id: str) -> None:
    """Save the views with the experiment, unless they are there."""
    tags = client.get_experiment(experiment_id).tags
    now = int(time.time() * 1000)
    for view, name, search, order in (
        (STUDIES, "lrsearch: studies", "", "attributes.start_time"),
        # Ordered by date, the page would fold the trials below studies again.
        (TRIALS, "lrsearch: trials", "tags.`lrsearch.kind` = 'trial'", "metrics.`train/loss`"),
    ):
        if _TAG + view not in tags:
            state = json.dumps(view_state(search, order))
            content = {"name": name, "createdAt": now, "updatedAt": now, "state": state}
            client.set_experiment_tag(experiment_id, _TAG + view, json.dumps(content))


def has_views(tags: Mapping[str, str]) -> bool:
    """Whether an experiment with these tags has the views."""
    return _TAG + STUDIES in tags and _TAG + TRIALS in tags


def view_state(search: str, order: str) -> dict[str, object]:
    """Return the state of the runs page, in the words of MLflow's own page."""
    sections = tuple(dict.fromkeys(section for section, _, _ in _CHARTS))
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
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for section in sections
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
