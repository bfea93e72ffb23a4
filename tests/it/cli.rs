//! The command line as programs use it: one JSON value on standard output, and an exit status that tells what went wrong.

use crate::support::cli::{Cli, shown};
use crate::support::ports::Port;
use crate::support::{Connection, Gateway, Request, Upstream, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// The command line in an empty directory, without a configuration.
fn bare() -> (TempDir, Cli) {
    let directory = tempfile::tempdir().unwrap();
    let cli = Cli::new(directory.path(), None);
    (directory, cli)
}

/// The command line with this configuration.
fn configured(text: &str) -> (TempDir, Cli) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weir.toml");
    fs::write(&file, text).unwrap();
    let cli = Cli::new(directory.path(), Some(&file));
    (directory, cli)
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// Asserts that an object has at least these keys.
#[track_caller]
fn has(value: &Value, names: &str) {
    let have = keys(value);
    let missing: Vec<&str> = names.split_whitespace().filter(|name| !have.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?} missing in {value}");
}

fn account(cli: &Cli, email: &str) -> String {
    let made = cli.json(&["account", "create", "--email", email]);
    made["account_id"].as_str().expect("account_id").to_owned()
}

#[test]
fn a_life_of_an_account_from_the_command_line() {
    let (directory, cli) = bare();
    let id = account(&cli, "a@example.com");
    let show =
        "account_id email status tier balance_micro_usd held_micro_usd consumed_micro_usd owed_micro_usd";
    let shown = cli.json(&["account", "show", "a@example.com"]);
    has(&shown, show);
    assert_eq!(shown, cli.json(&["account", "show", &id]));
    assert_eq!((&shown["status"], &shown["balance_micro_usd"]), (&json!("active"), &json!(0)));

    let credited = cli.json(&["credit", "add", "--account", &id, "--usd", "12.345678", "--reason", "paid"]);
    has(&credited, "balance_micro_usd lot_id");
    assert_eq!(credited["balance_micro_usd"], 12_345_678);

    let made = cli.json(&["key", "create", "--account", &id, "--name", "laptop"]);
    has(&made, "key_id key");
    let key_id = made["key_id"].as_str().unwrap();
    let list = cli.json(&["key", "list", "--account", &id]);
    has(&list[0], "key_id name prefix last_four status created_at expires_at last_used_at");
    assert_eq!((&list[0]["status"], &list[0]["last_used_at"]), (&json!("active"), &Value::Null));
    cli.json(&["key", "revoke", key_id]);
    assert_eq!(cli.json(&["key", "list", "--account", &id])[0]["status"], "revoked");

    assert_eq!(cli.json(&["account", "suspend", &id, "--reason", "late"]), json!({}));
    assert_eq!(cli.json(&["account", "show", &id])["status"], "suspended");
    assert_eq!(cli.json(&["account", "resume", &id]), json!({}));
    assert_eq!(cli.json(&["usage", "--account", &id]), json!([]));
    let audit = cli.json(&["ledger", "audit"]);
    assert_eq!((&audit["ok"], &audit["drift_pico_usd"]), (&json!(true), &json!(0)));
    assert!(directory.path().join("weir-data").is_dir(), "without a configuration all is in ./weir-data");
}

#[test]
fn credit_with_an_idempotency_key_is_added_once() {
    let (_directory, cli) = bare();
    let id = account(&cli, "a@example.com");
    let add = |usd: &'static str| {
        [
            "credit",
            "add",
            "--account",
            &id,
            "--usd",
            usd,
            "--reason",
            "paid",
            "--idempotency-key",
            "invoice-7",
        ]
        .map(str::to_owned)
    };
    let arguments = add("5.00");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let first = cli.json(&arguments);
    let second = cli.json(&arguments);
    assert_eq!(first["lot_id"], second["lot_id"]);
    assert_eq!(cli.json(&["account", "show", &id])["balance_micro_usd"], 5_000_000);
    let other = add("6.00");
    cli.fails(1, &other.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(cli.json(&["account", "show", &id])["balance_micro_usd"], 5_000_000);
}

#[test]
fn amounts_are_exact_or_refused() {
    let (_directory, cli) = bare();
    let id = account(&cli, "a@example.com");
    for usd in ["0.0000001", "1e3", "-5", "NaN", "ten", "1,000", "99999999999999999999"] {
        let usd = format!("--usd={usd}");
        cli.fails(2, &["credit", "add", "--account", &id, &usd, "--reason", "x"]);
    }
    cli.json(&["credit", "add", "--account", &id, "--usd", "0.000001", "--reason", "x"]);
    assert_eq!(cli.json(&["account", "show", &id])["balance_micro_usd"], 1);
}

#[test]
fn what_does_not_exist_fails_with_1() {
    let (_directory, cli) = bare();
    let nobody = "019a0000-0000-7000-8000-000000000000";
    cli.fails(1, &["account", "show", nobody]);
    cli.fails(1, &["account", "show", "nobody@example.com"]);
    cli.fails(1, &["account", "suspend", nobody, "--reason", "x"]);
    cli.fails(1, &["key", "create", "--account", nobody]);
    cli.fails(1, &["key", "revoke", nobody]);
    cli.fails(1, &["credit", "add", "--account", nobody, "--usd", "1", "--reason", "x"]);
    cli.fails(1, &["price", "import", "no-such-file.toml"]);
    account(&cli, "a@example.com");
    cli.fails(1, &["account", "create", "--email", "a@example.com"]);
}

#[test]
fn wrong_arguments_fail_with_2() {
    let (_directory, cli) = bare();
    for arguments in [
        &["no-such-command"][..],
        &["account", "create"],
        &["credit", "add", "--account", "x", "--usd", "1"],
        &["usage", "--account", "x", "--limit", "many"],
        &["key", "list", "--account", "x", "--unknown"],
    ] {
        let output = cli.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", shown(&output));
    }
    let help = cli.run(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("serve"));
}

#[test]
fn config_and_json_stand_before_or_after() {
    let (directory, _) = configured("");
    let cli = Cli::new(directory.path(), None);
    for arguments in [
        &["--config", "weir.toml", "--json", "ledger", "audit"][..],
        &["ledger", "--json", "--config", "weir.toml", "audit"],
        &["ledger", "audit", "--config", "weir.toml", "--json"],
        &["--json", "ledger", "audit", "--config=weir.toml"],
    ] {
        let output = cli.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", shown(&output));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["ok"], true);
    }
}

#[test]
fn a_wrong_configuration_fails_with_3_and_tells_all_that_is_wrong_with_line_and_caret() {
    let (_directory, cli) = configured(
        "[server]\nlisten = [\"127.0.0.1:8080\"]\nlisten_to = 5\n\n[[provider]]\nname = \"p\"\ndialect = \"no-such\"\n\
         base_url = \"http://127.0.0.1:1/v1\"\napi_key = \"env:X\"\n\n[[model]]\nname = \"m\"\ncontext_tokens = 10\n\
         routes = [{ provider = \"nobody\", model = \"m\", weight = 1 }]\n",
    );
    let output = cli.run(&["check"]);
    assert_eq!(output.status.code(), Some(3), "{}", shown(&output));
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    for telling in ["listen_to", "no-such", "nobody", "weir.toml", "^"] {
        assert!(text.contains(telling), "{telling:?} is not in:\n{text}");
    }
    assert!(cli.fails(3, &["check"])["message"].as_str().unwrap().contains("listen_to"));
    cli.fails(3, &["account", "create", "--email", "a@example.com"]);
}

#[test]
fn a_missing_configuration_or_broken_toml_fails_with_3() {
    let (directory, _) = bare();
    Cli::new(directory.path(), Some(&directory.path().join("none.toml"))).fails(3, &["check"]);
    let (_directory, cli) = configured("[server\nlisten = 5");
    cli.fails(3, &["check"]);
}

#[test]
fn the_reference_configuration_passes_its_own_check() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/weir.toml");
    let (directory, _) = bare();
    let cli = Cli::new(directory.path(), None);
    let output = cli.command(&["check", "--config", file]).env("OPENAI_API_KEY", "sk-test").output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}

#[test]
fn a_bad_price_file_changes_nothing() {
    let (directory, cli) = bare();
    let file = directory.path().join("prices.toml");
    let before = cli.json(&["price", "list"]);
    for text in [
        "[[price]]\nmodel = \"m\"\ninput = 0.15\n",
        "[[price]]\nmodel = \"m\"\ninput = \"0.1234567\"\n",
        "[[price]]\nmodel = \"m\"\ninput = \"-1\"\n",
        "[[price]]\nmodel = \"m\"\ninptu = \"1\"\n",
        "[[price]]\ninput = \"1\"\n",
        "[[price]]\nmodel = \"m\"\ninput = \"1\"\n[[price]]\nmodel = \"m\"\ninput = \"2\"\n",
    ] {
        fs::write(&file, text).unwrap();
        let error = cli.fails(1, &["price", "import", "prices.toml"]);
        assert!(error["message"].as_str().unwrap().contains("prices.toml"), "{error}");
    }
    assert_eq!(cli.json(&["price", "list"]), before);
}

#[test]
fn a_rise_without_notice_needs_force() {
    let (directory, cli) = bare();
    let file = directory.path().join("prices.toml");
    let write =
        |input: &str| fs::write(&file, format!("[[price]]\nmodel = \"m\"\ninput = \"{input}\"\n")).unwrap();
    write("1");
    cli.json(&["price", "import", "prices.toml"]);
    write("0.5");
    cli.json(&["price", "import", "prices.toml"]);
    write("2");
    cli.fails(1, &["price", "import", "prices.toml"]);
    cli.json(&["price", "import", "prices.toml", "--force"]);
    write("3");
    cli.json(&["price", "import", "prices.toml", "--effective", "2100-01-01T00:00:00Z"]);
    assert!(cli.json(&["price", "list"]).to_string().contains("\"m\""));
}

#[test]
fn usage_tells_of_each_request_what_the_contract_names() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    for _ in 0..3 {
        gateway.hello().ok();
    }
    let rows = gateway.rows_when(3);
    has(
        &rows[0],
        "request_id created_at key_id model provider status outcome stream input_tokens cached_tokens output_tokens \
         reasoning_tokens usage cost_pico_usd price_version usage_source latency_ms ttft_ms",
    );
    assert_eq!(rows[0]["key_id"], gateway.account.key_id.as_str());
    let times: Vec<&str> = rows.iter().map(|row| row["created_at"].as_str().unwrap()).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");

    let id = &gateway.account.id;
    let limited = gateway.cli.json(&["usage", "--account", id, "--limit", "2"]);
    assert_eq!(limited.as_array().unwrap().len(), 2);
    assert_eq!(limited[0], rows[0]);
    assert_eq!(gateway.cli.json(&["usage", "--account", id, "--since", "2100-01-01T00:00:00Z"]), json!([]));
    assert_eq!(
        gateway
            .cli
            .json(&["usage", "--account", id, "--since", "2020-01-01T00:00:00Z"])
            .as_array()
            .unwrap()
            .len(),
        3
    );
    let used = wait_for("the last use to show", Duration::from_secs(5), || {
        let list = gateway.cli.json(&["key", "list", "--account", id]);
        list[0]["last_used_at"].as_str().map(str::to_owned)
    });
    assert!(used.ends_with('Z'), "{used}");
}

#[test]
fn accounts_are_listed_in_the_order_of_their_making_a_page_at_a_time() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.rows_when(1);
    let (rich, poor) = (gateway.new_account("1234.567891"), gateway.new_account("0"));
    gateway.new_key(&rich.id, &[]);
    let (revoked, _) = gateway.new_key(&rich.id, &[]);
    gateway.cli.json(&["key", "revoke", &revoked]);
    gateway.new_key(&rich.id, &["--expires", "2020-01-01T00:00:00Z"]);
    gateway.cli.json(&["account", "suspend", &poor.id, "--reason", "late"]);
    let all = gateway.cli.json(&["account", "list"]);
    let all = all.as_array().expect("an array");
    let made = [(&gateway.account, "active", 1), (&rich, "active", 2), (&poor, "suspended", 1)];
    assert_eq!(all.len(), made.len(), "{all:?}");
    for (listed, (account, status, active_keys)) in all.iter().zip(made) {
        has(listed, "account_id email status tier balance_micro_usd active_keys created_at");
        assert_eq!((&listed["status"], &listed["active_keys"]), (&json!(status), &json!(active_keys)));
        let shown = gateway.cli.json(&["account", "show", &account.id]);
        for name in ["account_id", "email", "status", "tier", "balance_micro_usd"] {
            assert_eq!(listed[name], shown[name], "{name} of {listed}");
        }
    }

    let page = |more: &[&str]| gateway.cli.json(&[&["account", "list"], more].concat());
    assert_eq!(page(&["--limit", "2"]), json!(all[..2]));
    assert_eq!(page(&["--limit", "2", "--after", &rich.id]), json!(all[2..]));
    assert_eq!(page(&["--after", &gateway.account.email]), json!(all[1..]));
    assert_eq!(page(&["--after", &poor.id]), json!([]));
    for limit in ["0", "10001"] {
        gateway.cli.fails(2, &["account", "list", "--limit", limit]);
    }
    gateway.cli.fails(1, &["account", "list", "--after", "nobody@example.com"]);
}

#[test]
fn a_page_of_accounts_tells_how_to_see_the_next() {
    let (_directory, cli) = bare();
    let said = |arguments: &[&str]| {
        let output = cli.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", shown(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(said(&["account", "list"]).contains("no accounts"));
    let emails = ["a@example.com", "b@example.com", "c@example.com"];
    let ids = emails.map(|email| account(&cli, email));
    cli.json(&["credit", "add", "--account", &ids[0], "--usd", "12.5", "--reason", "paid"]);
    let first = said(&["account", "list", "--limit", "2"]);
    assert!(first.contains(&ids[0]) && first.contains("12.50") && !first.contains(&ids[2]), "{first}");
    let next = first.lines().last().unwrap().strip_prefix("There are more: weir ").expect(&first);
    let second = said(&next.split(' ').collect::<Vec<_>>());
    assert!(second.contains(&ids[2]) && !second.contains(&ids[1]), "{second}");
    assert!(!second.contains("There are more"), "{second}");
    assert!(!said(&["account", "list", "--limit", "3"]).contains("There are more"), "a full last page");
}

#[test]
fn people_get_tables_and_not_json() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.rows_when(1);
    for arguments in [
        &["usage", "--account", &gateway.account.id][..],
        &["account", "show", &gateway.account.id],
        &["key", "list", "--account", &gateway.account.id],
        &["price", "list"],
        &["ledger", "audit"],
    ] {
        let output = gateway.cli.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", shown(&output));
        assert!(
            !output.stdout.is_empty() && serde_json::from_slice::<Value>(&output.stdout).is_err(),
            "{arguments:?}"
        );
    }
}

#[test]
fn secrets_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, cli) = bare();
    let id = account(&cli, "a@example.com");
    let key = cli.json(&["key", "create", "--account", &id])["key"].as_str().unwrap().to_owned();
    let data = directory.path().join("weir-data");
    for entry in fs::read_dir(&data).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} is open to others: {mode:o}", entry.path());
        if entry.path().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            let found = bytes.windows(key.len()).any(|window| window == key.as_bytes());
            assert!(!found, "the key itself is in {:?}", entry.path());
        }
    }
    assert!(data.join("pepper").is_file());
}

#[test]
fn the_demo_explains_itself_and_answers() {
    let (listen, admin) = (Port::take(), Port::take());
    let (directory, cli) = configured(&format!(
        "[server]\nlisten = [\"{}\"]\n[admin]\nlisten = \"{}\"\n[store]\nurl = \"sqlite:weir-data/weir.db\"\n",
        listen.address(),
        admin.address()
    ));
    let mut last_key = None;
    for _ in 0..2 {
        let mut command = cli.command(&["serve", "--demo"]);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        wait_for("the demo to be ready", Duration::from_secs(20), || {
            crate::support::http::is_ready(admin.address()).then_some(())
        });
        let mut said = String::new();
        while !said.contains("sk-weir-") {
            assert!(out.read_line(&mut said).unwrap() > 0, "no key in {said:?}");
        }
        let start = said.find("sk-weir-").unwrap();
        let key: String =
            said[start..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let ask = |key: &str, stream: bool| {
            let body = json!({"model": "demo", "max_tokens": 8, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]});
            let request = Request::post("/v1/chat/completions", body.to_string()).key(key);
            Connection::open(listen.address()).ask(&request)
        };
        let answer = ask(&key, false).ok().json();
        assert_eq!(answer["usage"]["completion_tokens"], 8, "{answer}");
        assert!(ask(&key, true).ok().done());
        let body = json!({"model": "demo", "input": "Hi", "dimensions": 8});
        let request = Request::post("/v1/embeddings", body.to_string()).key(&key);
        let vectors = Connection::open(listen.address()).ask(&request).ok().json();
        assert_eq!(vectors["data"][0]["embedding"].as_array().unwrap().len(), 8, "{vectors}");
        if let Some(last) = last_key.replace(key) {
            assert_eq!(ask(&last, false).status, 401, "the key of the last start is revoked");
        }
        let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(told.success() && child.wait().unwrap().success());
        out.read_to_string(&mut said).unwrap();
        assert!(said.lines().count() <= 10, "{said}");
    }
    let audit = cli.json(&["ledger", "audit"]);
    assert_eq!(audit["ok"], true);
    drop(directory);
}

#[test]
fn a_port_that_is_taken_is_said_at_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let admin = Port::take();
    let (_directory, cli) = configured(&format!(
        "[server]\nlisten = [\"{}\"]\n[admin]\nlisten = \"{}\"\n",
        gateway.address(),
        admin.address()
    ));
    let output = cli.run(&["serve"]);
    assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&gateway.address().port().to_string()), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}
