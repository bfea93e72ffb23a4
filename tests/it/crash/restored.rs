//! An older database with newer journals: what was served after the backup is billed once, and nothing twice.

use super::audited;
use super::clients::{Clients, seed, verify};
use super::witness::Witness;
use crate::support::cli::shown;
use crate::support::gateway::{Gateway, hello, hello_stream};
use crate::support::upstream::chunk;
use crate::support::{Answer, Request, Upstream, ms, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn back_up(gateway: &Gateway) -> PathBuf {
    let made = gateway.cli.json(&["backup", "backups"]);
    gateway.directory().join(made["path"].as_str().unwrap())
}

fn put_back(gateway: &Gateway, backup: &Path) -> Value {
    gateway.cli.json(&["restore", backup.to_str().unwrap()])
}

/// The backups that are there, finished or not.
fn entries(gateway: &Gateway) -> Vec<String> {
    let found = fs::read_dir(gateway.directory().join("backups"))
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect());
    found.unwrap_or_default()
}

/// Waits until so many more requests came to the provider.
fn served(witness: &Witness, more: usize) {
    let enough = witness.served().len() + more;
    wait_for("requests to be served", ms(60_000), || (witness.served().len() >= enough).then_some(()));
}

#[test]
fn an_older_database_with_newer_journals_loses_no_debit_and_doubles_none() {
    let seed = seed();
    let witness = Witness::start();
    let mut gateway = Gateway::builder()
        .provider_at("main", witness.address, "")
        .standard_models("main")
        .credit("100000")
        // So that segments are applied, and taken away, all the time.
        .journal("max_bytes = 1048576")
        .start();
    let one = gateway.account.clone();
    let many: Vec<_> = (0..4).map(|_| gateway.new_account("10000")).collect();
    let clients =
        Clients::start(gateway.address(), seed, &[vec![one.clone()], vec![one.clone()], many.clone(), many]);
    served(&witness, 200);
    // Live sessions, open requests and all.
    let backup = back_up(&gateway);
    // More than a segment.
    served(&witness, 600);
    // Sessions that the backup does not know: one that stops in good order, and one that is killed.
    gateway.stop();
    gateway.serve();
    served(&witness, 200);
    gateway.kill();
    gateway.serve();
    served(&witness, 200);
    gateway.kill();
    let first = put_back(&gateway, &backup);
    assert!(first["sessions"].as_u64() >= Some(3) && first["segments"].as_u64() >= Some(3), "{first}");
    assert_eq!(first["to_be_entered_again"], serde_json::json!([]), "{first}");
    audited(&gateway);
    gateway.serve();
    audited(&gateway);
    // And again, with what the restored one has done, too; killed in the middle of its recovery.
    served(&witness, 200);
    gateway.kill();
    put_back(&gateway, &backup);
    gateway.spawn();
    std::thread::sleep(ms(60));
    gateway.kill();
    audited(&gateway);
    gateway.serve();
    served(&witness, 50);
    let notes = clients.end();
    gateway.stop();
    let audit = audited(&gateway);
    assert_eq!((&audit["live_sessions"], &audit["leased_micro_usd"]), (&0.into(), &0.into()), "{audit}");
    // Each of the five ends cuts at most what its four clients had under way.
    let verdict = verify(&gateway, &witness, &notes, 20);
    assert!(verdict.whole > 100, "{verdict:?}");
    // A third time, at rest: nothing changes any more.
    put_back(&gateway, &backup);
    gateway.serve();
    gateway.stop();
    audited(&gateway);
    assert_eq!(verify(&gateway, &witness, &notes, 20), verdict);
    eprintln!("{verdict:?}, {first}");
}

/// Whether so many segments of the one journal have been written to.
fn has_segments(gateway: &Gateway, count: usize) -> bool {
    let files =
        |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let mut segments: Vec<PathBuf> = files(&gateway.directory().join("data/journal"))
        .iter()
        .filter(|path| path.is_dir() && !path.ends_with("kept"))
        .flat_map(|session| files(session))
        .filter(|path| path.extension().is_some())
        .collect();
    segments.sort();
    // Behind the first page, so that no head of a segment that is made ahead of need is taken for its use.
    let written = |path: &PathBuf| fs::read(path).unwrap().iter().skip(4_096).any(|byte| *byte != 0);
    segments.get(count - 1).is_some_and(written)
}

#[test]
fn a_request_that_was_open_at_the_backup_is_billed_once_though_its_segment_was_full_before() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .credit("1000")
        .journal("max_bytes = 1048576")
        .start();
    upstream.next(Answer::stream().event(&chunk("Hello")).wait_for_end());
    let (stream, head) = gateway.begin(&hello_stream());
    let open = head.header("x-request-id").unwrap().to_owned();
    let mut settled = 0;
    while !has_segments(&gateway, 2) {
        assert!(settled < 2_000, "no segment is ever full");
        gateway.hello().ok();
        settled += 1;
    }
    // What follows the backup's watermark stands in the second segment; only the first one says that the request was sent.
    gateway.rows_when(settled);
    let backup = back_up(&gateway);
    gateway.kill();
    drop(stream);
    let billed = |gateway: &Gateway| {
        let rows = gateway.rows_when(settled + 1);
        let row = rows.iter().find(|row| row["request_id"] == open.as_str()).expect("it is billed").clone();
        assert_eq!(row["outcome"], "gateway_died");
        row
    };
    gateway.serve();
    let before = billed(&gateway);
    gateway.stop();
    put_back(&gateway, &backup);
    gateway.serve();
    let after = billed(&gateway);
    assert_eq!(after["cost_pico_usd"], before["cost_pico_usd"]);
    assert!(after["cost_pico_usd"].as_i64() > Some(0), "{after}");
    gateway.stop();
    audited(&gateway);
}

#[test]
fn what_was_entered_after_the_backup_is_told_and_its_debits_are_not_lost() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    let gone = gateway.new_account("5");
    gateway.cli.json(&["key", "revoke", &gone.key_id]);
    let backup = back_up(&gateway);
    let manifest: Value = serde_json::from_slice(&fs::read(backup.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["sessions"].as_array().unwrap().len(), 1, "{manifest}");
    gateway.add_credit(&gateway.account.id, "3");
    let (revoked, _) = gateway.new_key(&gateway.account.id, &[]);
    let late = gateway.new_account("7");
    let key = gateway.account.key_id.clone();
    gateway.ask(&Request::post("/v1/chat/completions", hello().to_string()).key(&late.key)).ok();
    gateway.hello().ok();
    gateway.rows_when(1);
    gateway.cli.json(&["key", "revoke", &key]);
    gateway.cli.json(&["key", "revoke", &revoked]);
    gateway.kill();
    let told = put_back(&gateway, &backup);
    let told: Vec<(String, String)> = told["to_be_entered_again"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let amount = one["amount_micro_usd"].as_i64().map_or(String::new(), |micro| format!(" {micro}"));
            (
                one["what"].as_str().unwrap().to_owned(),
                format!("{}{amount}", one["account"].as_str().unwrap()),
            )
        })
        .collect();
    let (own, other) = (gateway.account.email.clone(), late.email.clone());
    let expected = [
        ("account", other.clone()),
        ("credit", format!("{own} 3000000")),
        ("credit", format!("{other} 7000000")),
        ("key", other),
        ("revocation", own),
    ];
    let expected = expected.map(|(what, of)| (what.to_owned(), of));
    assert_eq!(told, expected);
    gateway.serve();
    audited(&gateway);
    gateway.rows_when(1);
    // It is known from its journal alone, and owes what it used.
    let shown = gateway.cli.json(&["account", "show", &late.id]);
    assert_eq!((&shown["status"], &shown["balance_micro_usd"]), (&"suspended".into(), &0.into()), "{shown}");
    assert!(shown["owed_micro_usd"].as_i64() > Some(0), "{shown}");
    let usage = gateway.cli.json(&["usage", "--account", &late.id]);
    assert_eq!(usage.as_array().unwrap().len(), 1, "{usage}");
    // What was credited after the backup is not there, until it is entered again.
    gateway.cli.json(&["credit", "add", "--account", &gateway.account.id, "--usd", "3", "--reason", "again"]);
    gateway.cli.json(&["credit", "add", "--account", &late.id, "--usd", "7", "--reason", "again"]);
}

#[test]
fn a_restore_is_refused_on_a_live_process_of_damage_and_where_it_would_lose() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .journal("keep_bytes = 0")
        .start();
    gateway.hello().ok();
    gateway.rows_when(1);
    let backup = back_up(&gateway);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        [mode(&backup), mode(&backup.join("weir.db")), mode(&backup.join("manifest.json"))],
        [0o700, 0o600, 0o600]
    );
    let refused = |gateway: &Gateway, code: &str| {
        let before = fs::read(gateway.database()).unwrap();
        let error = gateway.cli.fails(1, &["restore", backup.to_str().unwrap()]);
        assert_eq!(error["code"], code, "{error}");
        assert!(fs::read(gateway.database()).unwrap() == before, "nothing has changed");
    };
    refused(&gateway, "in_use");
    gateway.hello().ok();
    gateway.rows_when(2);
    gateway.stop();
    // Its journal is removed by the next start, which keeps nothing.
    gateway.serve();
    wait_for("what is kept to be removed", ms(5_000), || {
        gateway.directory().join("data/journal/kept/pruned").exists().then_some(())
    });
    gateway.stop();
    refused(&gateway, "loss");
    let copy = backup.join("weir.db");
    let whole = fs::read(&copy).unwrap();
    for damaged in [&whole[..whole.len() - 1], &[&whole[..5_000], b"x", &whole[5_001..]].concat()] {
        fs::write(&copy, damaged).unwrap();
        let error = gateway.cli.fails(1, &["restore", backup.to_str().unwrap(), "--accept-loss"]);
        assert_eq!(error["code"], "damaged", "{error}");
    }
    fs::write(&copy, b"").unwrap();
    let output = gateway.cli.run(&["restore", "no-such-backup"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no-such-backup/manifest.json"),
        "{}",
        shown(&output)
    );
    gateway.rows_when(2);
    gateway.serve();
}

#[test]
fn journals_that_are_gone_are_told_though_the_backup_was_made_at_rest() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.rows_when(1);
    gateway.stop();
    let backup = back_up(&gateway);
    gateway.serve();
    gateway.hello().ok();
    gateway.rows_when(2);
    gateway.stop();
    let (journal, aside) =
        (gateway.directory().join("data/journal"), gateway.directory().join("data/journal-aside"));
    fs::rename(&journal, &aside).unwrap();
    let refused = |gateway: &Gateway| {
        let error = gateway.cli.fails(1, &["restore", backup.to_str().unwrap()]);
        assert_eq!(error["code"], "loss", "{error}");
    };
    refused(&gateway);
    gateway.rows_when(2);
    let whole = fs::read(gateway.database()).unwrap();
    fs::write(gateway.database(), b"neither a database nor empty").unwrap();
    refused(&gateway);
    fs::write(gateway.database(), whole).unwrap();
    // With them nothing is lost.
    fs::remove_dir_all(&journal).unwrap();
    fs::rename(&aside, &journal).unwrap();
    put_back(&gateway, &backup);
    gateway.serve();
    gateway.rows_when(2);
}

#[test]
fn a_backup_that_cannot_be_written_whole_is_not_there() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    let whole = fs::metadata(back_up(&gateway).join("weir.db")).unwrap().len();
    let before = entries(&gateway);
    // No file may grow to the size of the copy: as on a disk that is full.
    let backup = gateway.cli.command(&["backup", "backups", "--json"]);
    let mut limited = std::process::Command::new("prlimit");
    limited.arg(format!("--fsize={}", whole / 2)).args(["env", "--ignore-signal=XFSZ"]);
    limited.arg(backup.get_program()).args(backup.get_args()).current_dir(gateway.directory());
    let output = limited.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
    assert_eq!(entries(&gateway), before);
    // One that is killed is no backup, either, and the next one removes what it left.
    fs::create_dir(gateway.directory().join("backups/.weir-20300101T000000.000000Z.partial")).unwrap();
    back_up(&gateway);
    assert_eq!(entries(&gateway).len(), 2, "{:?}", entries(&gateway));
}
