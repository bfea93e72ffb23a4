//! The alerts: promtool takes them and their tests, and each alert is complete and has a test of either kind.

use super::tools;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the rules and their tests are.
pub(super) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/prometheus")
}

fn promtool(arguments: &[&str]) -> String {
    let output = tools::command("promtool").args(arguments).current_dir(directory()).output();
    let output = output.unwrap();
    let text = crate::support::cli::shown(&output);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text
}

/// The blocks of a list in YAML as these files write it, by what their first line begins with.
fn blocks<'a>(text: &'a str, start: &str) -> Vec<(&'a str, &'a str)> {
    let mut blocks: Vec<(&str, &str)> = Vec::new();
    for part in text.split(start).skip(1) {
        let (name, rest) = part.split_once('\n').unwrap();
        blocks.push((name.trim(), rest));
    }
    blocks
}

#[test]
fn promtool_takes_the_rules_the_example_and_every_unit_test() {
    promtool(&["check", "rules", "weir.rules.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "weir.rules.test.yml"]);
}

#[test]
fn each_alert_says_what_to_do_and_is_tested_to_fire_and_not_to() {
    let rules = fs::read_to_string(directory().join("weir.rules.yml")).unwrap();
    let tests = fs::read_to_string(directory().join("weir.rules.test.yml")).unwrap();
    let alerts = blocks(&rules, "      - alert: ");
    assert!(alerts.len() > 20, "{}", alerts.len());
    let cases = blocks(&tests, "        alertname: ");
    for (alert, text) in &alerts {
        let line = |key: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(key))
                .unwrap_or_else(|| panic!("{alert} has a {key}"))
        };
        let severity = line("labels: {severity: ");
        assert!(["page}", "ticket}", "info}"].contains(&severity), "{alert} is {severity}");
        assert!(line("summary: ").len() > 20, "{alert}: a sentence");
        assert!(line("description: ").len() > 60, "{alert}: what it means and what to do");
        let of_it: Vec<&str> =
            cases.iter().filter(|(name, _)| name == alert).map(|(_, rest)| *rest).collect();
        let quiet = of_it.iter().filter(|rest| rest.trim_start().starts_with("exp_alerts: []")).count();
        assert!(quiet > 0, "{alert} is tested not to fire");
        assert!(of_it.len() > quiet, "{alert} is tested to fire");
    }
}
