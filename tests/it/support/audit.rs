//! The invariants that hold at the end of every test, read from outside: command line and log, never the database.

use super::gateway::{Gateway, rows_of};
use super::prices::PRICES;
use super::upstream::{PROVIDER_KEY, Upstream};
use serde_json::Value;
use std::collections::HashMap;
use weir::money::{Micros, PICOS_PER_MICRO};

/// What is wrong with the books, in words; nothing where they are right.
pub(super) fn books(gateway: &Gateway) -> Vec<String> {
    let mut off = Vec::new();
    let audit = gateway.cli.run(&["ledger", "audit", "--json"]);
    let said: Value = serde_json::from_slice(&audit.stdout).unwrap_or_default();
    if !audit.status.success() || said["ok"] != true || said["drift_pico_usd"] != 0 {
        off.push(format!("weir ledger audit: {} {said}", audit.status));
    }
    let accounts = gateway.lock().accounts.clone();
    let mut rows = Vec::new();
    for (account, credited) in &accounts {
        let own = rows_of(&gateway.cli, &account.id);
        let shown = gateway.cli.json(&["account", "show", &account.id]);
        off.extend(balance(&shown, *credited, &own));
        rows.extend(own);
    }
    off.extend(rows.iter().filter_map(cost));
    off.extend(rows.iter().filter_map(sense));
    off.extend(answers(gateway, &rows));
    off.extend(providers(gateway, &rows));
    off
}

/// Nothing held, and the balance is the credit less every cost, rounded down once.
fn balance(shown: &Value, credited: Micros, rows: &[Value]) -> Vec<String> {
    let number = |name: &str| shown[name].as_i64().unwrap_or_else(|| panic!("{name} in {shown}"));
    let spent: i128 = rows.iter().map(|row| i128::from(cost_of(row))).sum();
    let left_pico = i128::from(credited.0) * i128::from(PICOS_PER_MICRO) - spent;
    let left = left_pico.div_euclid(i128::from(PICOS_PER_MICRO));
    let (balance, held, owed) =
        (number("balance_micro_usd"), number("held_micro_usd"), number("owed_micro_usd"));
    let mut off = Vec::new();
    if held != 0 {
        off.push(format!("{held} micro-dollars are still held: {shown}"));
    }
    // What is owed is collected in whole micro-dollars; the rest of one waits for more.
    let difference = i128::from(balance) - i128::from(owed) - left;
    let right = if left_pico < 0 { (0..=1).contains(&difference) } else { difference == 0 && owed == 0 };
    if !right {
        off.push(format!("balance {balance} less owed {owed} is not credit less costs, {left}: {shown}"));
    }
    off
}

/// Each row's cost follows from its classes and the price book.
fn cost(row: &Value) -> Option<String> {
    let want = cost_by_hand(row["model"].as_str()?, &row["usage"]);
    (want != Some(cost_of(row))).then(|| format!("the classes cost {want:?}: {row}"))
}

/// The cost of these classes in pico-dollars, where a model such as `tiny-7` is priced as `tiny` is: a class without a price takes the nearest, else the dearest.
pub(crate) fn cost_by_hand(model: &str, usage: &Value) -> Option<i64> {
    let model = model.split('-').next()?;
    let prices: HashMap<&str, i64> = PRICES
        .iter()
        .find(|(name, _)| *name == model)?
        .1
        .iter()
        .map(|(class, usd)| (*class, Micros::parse_usd(usd).unwrap().0))
        .collect();
    let dearest = prices.values().copied().max()?;
    let price_of = |class: &str| {
        let near = match class {
            "cache_read" => "input",
            "reasoning" => "output",
            _ => class,
        };
        prices.get(class).or_else(|| prices.get(near)).copied().unwrap_or(dearest)
    };
    usage
        .as_object()?
        .iter()
        .try_fold(0_i64, |sum, (class, units)| sum.checked_add(units.as_i64()?.checked_mul(price_of(class))?))
}

/// Each row says what it must, and says it consistently.
fn sense(row: &Value) -> Option<String> {
    let number = |name: &str| row[name].as_u64();
    let unbilled = matches!(row["outcome"].as_str(), Some("upstream_error" | "upstream_timeout"));
    let class = |name: &str| row["usage"][name].as_u64().unwrap_or(0);
    let checks = [
        (row["usage"].is_object(), "usage is an object"),
        (number("price_version").is_some(), "price_version is a number"),
        (number("latency_ms").is_some(), "latency_ms is a number"),
        (matches!(row["usage_source"].as_str(), Some("reported" | "counted")), "usage_source is known"),
        (row["stream"].is_boolean(), "stream is a boolean"),
        (number("cached_tokens") == Some(class("cache_read")), "cached_tokens is the class"),
        (number("reasoning_tokens") == Some(class("reasoning")), "reasoning_tokens is the class"),
        (number("output_tokens") >= number("reasoning_tokens"), "reasoning is within output"),
        (number("input_tokens") >= number("cached_tokens"), "cached is within input"),
        (!unbilled || cost_of(row) == 0, "an error of the provider costs nothing"),
        (row["created_at"].as_str().is_some_and(|time| time.ends_with('Z')), "created_at is UTC"),
    ];
    let off: Vec<&str> = checks.iter().filter(|(right, _)| !right).map(|(_, what)| *what).collect();
    (!off.is_empty()).then(|| format!("not so: {}: {row}", off.join(", ")))
}

/// Each successful answer that the test saw has exactly one row, no request has two, and a refusal costs nothing.
fn answers(gateway: &Gateway, rows: &[Value]) -> Vec<String> {
    let mut off = Vec::new();
    let by_id: HashMap<&str, &Value> =
        rows.iter().filter_map(|row| Some((row["request_id"].as_str()?, row))).collect();
    if by_id.len() != rows.len() {
        off.push(format!("{} rows, but {} request ids", rows.len(), by_id.len()));
    }
    for (status, id) in &gateway.lock().answers {
        match by_id.get(id.as_str()) {
            None if *status < 300 => off.push(format!("no row for the request {id}, answered {status}")),
            Some(row) if row["status"] != *status => off.push(format!("answered {status}: {row}")),
            Some(row) if *status >= 400 && cost_of(row) != 0 => {
                off.push(format!("a refusal was billed: {row}"))
            }
            _ => {}
        }
    }
    off
}

/// Each request that a provider answered with success has a row, and none is billed that no provider got.
fn providers(gateway: &Gateway, rows: &[Value]) -> Option<String> {
    let upstreams = gateway.upstreams();
    let answered: usize = upstreams.iter().map(Upstream::successes).sum();
    let received: usize = upstreams.iter().map(Upstream::count).sum();
    let completed = rows.iter().filter(|row| row["outcome"] == "completed").count();
    let billed = rows.iter().filter(|row| cost_of(row) > 0).count();
    let right =
        upstreams.is_empty() || (completed <= answered && answered <= rows.len() && billed <= received);
    (!right).then(|| {
        let all = rows.len();
        format!("{completed} completed and {billed} billed of {all} rows; providers got {received}, answered {answered}")
    })
}

/// The log of the gateway tells of no panic and gives no secret away.
pub(super) fn log(gateway: &Gateway) -> Vec<String> {
    let log = gateway.log();
    let mut off = Vec::new();
    if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
        off.push(format!("a panic: {line}"));
    }
    let secrets = gateway.lock().secrets.clone();
    for secret in secrets.iter().map(String::as_str).chain([PROVIDER_KEY]) {
        if let Some(line) = log.lines().find(|line| line.contains(secret)) {
            off.push(format!("the log gives {secret:?} away: {line}"));
        }
    }
    off
}

fn cost_of(row: &Value) -> i64 {
    row["cost_pico_usd"].as_i64().unwrap_or_else(|| panic!("cost_pico_usd is a number: {row}"))
}
