//! The dashboards, held to the rules of Grafana's dashboard linter and to a layout without gaps or overlaps.

use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The width of a dashboard in Grafana's units.
const WIDTH: u64 = 24;
/// Labels that look like metrics.
const LABELS: [&str; 4] =
    ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_type"];
/// The units that these dashboards use, of those that Grafana knows.
const UNITS: [&str; 10] =
    ["none", "short", "reqps", "ops", "wps", "cps", "percentunit", "s", "currencyUSD", "bytes"];

/// Counted at the start of a process and hardly ever after, before anybody scrapes it: an increase would be 0.
const COUNTED_AT_THE_START: [&str; 1] = ["weir_ledger_sessions_recovered_total"];

/// Every dashboard, by its file's name.
pub(super) fn all() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/grafana");
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            all.push((name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap()));
        }
    }
    assert!(!all.is_empty(), "there is a dashboard");
    all
}

/// Its panels that show something.
pub(super) fn panels(dashboard: &Value) -> Vec<&Value> {
    list(&dashboard["panels"]).into_iter().filter(|panel| panel["type"] != "row").collect()
}

/// What a panel asks for.
pub(super) fn queries(panel: &Value) -> Vec<&str> {
    list(&panel["targets"]).into_iter().map(|target| target["expr"].as_str().unwrap()).collect()
}

/// The metrics that a query reads, each with what follows it.
pub(super) fn metrics(query: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(is_name) {
        let end = rest[start..].find(|c| !is_name(c)).map_or(rest.len(), |length| start + length);
        let (name, after) = (&rest[start..end], &rest[end..]);
        let is_metric = ["weir_", "gen_ai_", "process_", "up"].iter().any(|prefix| match *prefix {
            "up" => name == "up",
            prefix => name.starts_with(prefix),
        });
        if is_metric && !LABELS.contains(&name) && !rest[..start].ends_with(':') {
            found.push((name, after));
        }
        rest = after;
    }
    found
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().map(|all| all.iter().collect()).unwrap_or_default()
}

/// `template-*`, `uneditable-dashboard`.
#[test]
fn variables_and_data_source_are_as_the_linter_wants_them() {
    for (name, dashboard) in all() {
        assert_eq!(dashboard["editable"], false, "{name}");
        let variables = list(&dashboard["templating"]["list"]);
        let sources: Vec<&&Value> = variables.iter().filter(|one| one["type"] == "datasource").collect();
        assert_eq!(sources.len(), 1, "{name}: one data source");
        assert_eq!(
            (&sources[0]["name"], &sources[0]["label"], &sources[0]["query"]),
            (&"datasource".into(), &"Data source".into(), &"prometheus".into())
        );
        for (wanted, label) in [("job", "Job"), ("instance", "Instance")] {
            let variable = variables.iter().find(|one| one["name"] == wanted);
            assert_eq!(variable.unwrap_or_else(|| panic!("{name}: {wanted}"))["label"], label);
        }
        for variable in variables.iter().filter(|one| one["type"] == "query") {
            let told = format!("{name}: {}", variable["name"]);
            assert_eq!(variable["datasource"]["uid"], "${datasource}", "{told}");
            assert_eq!((&variable["multi"], &variable["allValue"]), (&true.into(), &".+".into()), "{told}");
            assert_eq!(variable["refresh"], 2, "{told} is read again when the time range changes");
            let query = variable["query"].as_str().unwrap();
            assert!(query.starts_with("label_values(") && query.ends_with(')'), "{told}: {query}");
        }
    }
}

/// `panel-*`.
#[test]
fn each_panel_says_what_it_shows_in_a_unit_from_the_chosen_source() {
    for (name, dashboard) in all() {
        let mut ids = HashSet::new();
        for panel in panels(&dashboard) {
            let told = format!("{name}: {}", panel["title"]);
            let text = |key: &str| panel[key].as_str().unwrap_or_default().len();
            assert!(text("title") > 2 && text("description") > 10, "{told}");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{told}: its id is another's");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{told}");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
            assert!(UNITS.contains(&unit) || unit == "dateTimeFromNow", "{told}: {unit:?}");
            assert!(!queries(panel).is_empty(), "{told} asks for something");
            let mut references = HashSet::new();
            for target in list(&panel["targets"]) {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{told}");
                assert!(references.insert(target["refId"].as_str().unwrap()), "{told}");
            }
        }
    }
}

/// `target-job`, `target-instance`, `target-counter-agg`, `target-rate-interval`; `target-promql` is for Prometheus itself to judge.
#[test]
fn each_query_is_of_the_chosen_jobs_and_instances_and_takes_rates_of_counters() {
    for (name, dashboard) in all() {
        for panel in panels(&dashboard) {
            for query in queries(panel) {
                let told = format!("{name}: {}: {query}", panel["title"]);
                let metrics = metrics(query);
                assert!(!metrics.is_empty(), "{told}");
                for (metric, after) in metrics {
                    let selector = after.strip_prefix('{').and_then(|rest| rest.split_once('}'));
                    let (matchers, then) =
                        selector.unwrap_or_else(|| panic!("{told}: {metric} has a selector"));
                    for wanted in ["job=~\"$job\"", "instance=~\"$instance\""] {
                        assert!(matchers.contains(wanted), "{told}: {metric} is of {wanted}");
                    }
                    let before = query.split(metric).next().unwrap();
                    let called =
                        before.trim_end_matches('(').rsplit(|c: char| !c.is_ascii_alphabetic()).next();
                    let range = then.strip_prefix('[').and_then(|rest| rest.split(']').next());
                    let is_counter =
                        ["_total", "_bucket", "_sum", "_count"].iter().any(|end| metric.ends_with(end));
                    match (is_counter, range, called) {
                        // Not an increase: how much that is would depend on how far one has zoomed.
                        (true, Some("$__rate_interval"), Some("rate")) => {}
                        (true, Some("$__range"), Some("increase")) => {}
                        (true, None, _) if COUNTED_AT_THE_START.contains(&metric) => {}
                        (false, None, _) => {}
                        other => panic!("{told}: {metric}: {other:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn panels_fill_the_width_row_by_row_and_none_covers_another() {
    for (name, dashboard) in all() {
        let mut taken = HashSet::new();
        let mut height = 0;
        for panel in list(&dashboard["panels"]) {
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            let (x, y, width, tall) = (place("x"), place("y"), place("w"), place("h"));
            assert!(x + width <= WIDTH && width >= 3 && tall >= 1, "{name}: {}", panel["title"]);
            for cell in (y..y + tall).flat_map(|row| (x..x + width).map(move |column| (column, row))) {
                assert!(taken.insert(cell), "{name}: {} covers another at {cell:?}", panel["title"]);
            }
            height = height.max(y + tall);
        }
        let area = usize::try_from(WIDTH * height).unwrap();
        assert_eq!(taken.len(), area, "{name}: no gaps");
    }
}
