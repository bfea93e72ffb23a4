//! A real Prometheus that scrapes a real gateway under traffic and answers every query of ours.

use super::{dashboard, rules, tools, traffic};
use crate::support::ports::Port;
use crate::support::{Connection, Request, wait_for};
use serde_json::Value;
use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Metrics that a gateway like this one does not have, and why.
const WITHOUT_DATA: [(&str, &str); 1] =
    [("weir_certificate_expiry_timestamp_seconds", "it has no TLS listener")];

/// Prometheus, killed when it goes.
struct Prometheus {
    child: Child,
    port: Port,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes this target each second, under the rules of ours.
    fn start(target: std::net::SocketAddr) -> Prometheus {
        let directory = tempfile::tempdir().unwrap();
        let rules = rules::directory().join("weir.rules.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  - job_name: weir\n    \
             static_configs: [{{targets: [\"{target}\"]}}]\n",
            rules.display()
        );
        fs::write(directory.path().join("prometheus.yml"), config).unwrap();
        let port = Port::take();
        let child = tools::command("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={}", port.address()))
            .arg("--log.level=error")
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let prometheus = Prometheus { child, port, _directory: directory };
        wait_for("Prometheus to be ready", Duration::from_secs(20), || {
            std::net::TcpStream::connect(prometheus.port.address()).ok()?;
            (prometheus.get("/-/ready").0 == 200).then_some(())
        });
        prometheus
    }

    fn get(&self, path: &str) -> (u16, String) {
        let reply = Connection::open(self.port.address()).ask(&Request::get(path));
        (reply.status, reply.text())
    }

    fn api(&self, path: &str) -> Value {
        let (status, text) = self.get(path);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text}"));
        assert_eq!((status, &answer["status"]), (200, &"success".into()), "{path}: {text}");
        answer["data"].clone()
    }

    /// The series that the query gives now.
    fn query(&self, query: &str) -> Vec<Value> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(query)));
        data["result"].as_array().unwrap().clone()
    }

    fn scrapes(&self) -> f64 {
        let up = self.query("count_over_time(up{job=\"weir\"}[10m])");
        up.first().map_or(0.0, |series| series["value"][1].as_str().unwrap().parse().unwrap())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_query_of_dashboards_and_rules_is_answered_by_a_prometheus_that_scrapes_a_gateway_under_load() {
    let scene = traffic::Scene::start();
    scene.play();
    let prometheus = Prometheus::start(scene.gateway.admin());
    for _ in 0..2 {
        let before = prometheus.scrapes();
        wait_for("another scrape", Duration::from_secs(10), || (prometheus.scrapes() > before).then_some(()));
        scene.play();
    }
    let before = prometheus.scrapes();
    wait_for("what was done last to be scraped", Duration::from_secs(10), || {
        (prometheus.scrapes() > before + 1.0).then_some(())
    });

    for (name, dashboard) in dashboard::all() {
        for panel in dashboard::panels(&dashboard) {
            for query in dashboard::queries(panel) {
                let query = told(query);
                let series = prometheus.query(&query);
                let is_without = WITHOUT_DATA.iter().any(|(metric, _)| query.contains(metric));
                assert!(is_without || !series.is_empty(), "{name}: {}: no data for {query}", panel["title"]);
            }
        }
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let Some(values) =
                variable["query"].as_str().and_then(|query| query.strip_prefix("label_values("))
            else {
                continue;
            };
            let (selector, label) = values.trim_end_matches(')').rsplit_once(", ").unwrap();
            let path = format!("/api/v1/label/{label}/values?match[]={}", encoded(&told(selector)));
            assert!(!prometheus.api(&path).as_array().unwrap().is_empty(), "{name}: {values}");
        }
    }
    rules_are_evaluated(&prometheus);
}

/// Each without an error, on metrics that are there; and the alerts of what goes wrong in this scene are on their way.
fn rules_are_evaluated(prometheus: &Prometheus) {
    let groups = prometheus.api("/api/v1/rules");
    let rules: Vec<&Value> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() > 20);
    for rule in &rules {
        let (name, query) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        for (metric, _) in dashboard::metrics(query) {
            let is_without = WITHOUT_DATA.iter().any(|(without, _)| *without == metric);
            assert!(is_without || !prometheus.query(metric).is_empty(), "{name}: no data for {metric}");
        }
        if rule["type"] == "recording" {
            assert!(!prometheus.query(name).is_empty(), "no data for {name}");
        }
    }
    for alert in ["WeirModelDown", "WeirUnpricedClass", "WeirRequestsFail"] {
        let rule = rules.iter().find(|rule| rule["name"] == alert).unwrap();
        assert!(rule["state"] == "pending" || rule["state"] == "firing", "{alert} is {}", rule["state"]);
    }
    for alert in [
        "WeirDown",
        "WeirNotReady",
        "WeirJournalFails",
        "WeirBooksOff",
        "WeirDatabaseAway",
        "WeirReloadFailed",
    ] {
        let rule = rules.iter().find(|rule| rule["name"] == alert).unwrap();
        assert_eq!(rule["state"], "inactive", "{alert}");
    }
}

/// The query with Grafana's variables filled in.
fn told(query: &str) -> String {
    query
        .replace("$__rate_interval", "1m")
        .replace("$__range", "1h")
        .replace("\"$job\"", "\"weir\"")
        .replace("\"$instance\"", "\".+\"")
        .replace("\"$model\"", "\".+\"")
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
