//! The database is locked by another process, or moved away.

use super::clients::{Clients, seed, verify};
use super::witness::Witness;
use super::{WriteLock, audited, away_time, tail};
use crate::support::gateway::Gateway;
use crate::support::{Upstream, ms};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;

fn started() -> (Witness, Gateway, Clients) {
    let witness = Witness::start();
    let gateway = Gateway::builder()
        .provider_at("main", witness.address, "")
        .standard_models("main")
        .credit("1000")
        .start();
    let account = vec![gateway.account.clone()];
    let clients = Clients::start(gateway.address(), seed(), &[account.clone(), account]);
    sleep(ms(500));
    (witness, gateway, clients)
}

#[test]
fn a_locked_database_loses_nothing_and_catches_up() {
    let (witness, gateway, clients) = started();
    let lock = WriteLock::take(&gateway);
    sleep(away_time());
    lock.release();
    sleep(ms(500));
    let notes = clients.end();
    // The writer catches up within its own patience and one more try.
    crate::support::wait_for("every row", ms(5_000), || {
        (gateway.rows().len() >= notes.whole()).then_some(())
    });
    let verdict = verify(&gateway, &witness, &notes, 0);
    eprintln!("locked for {:?}: {verdict:?}; refused {:?}", away_time(), notes.refused);
    // A lease that runs dry meanwhile cannot be filled: that is not the customer's lack of credit.
    assert!(notes.refused.keys().all(|kind| *kind == (503, "no_capacity".to_owned())), "{:?}", notes.refused);
    assert_eq!(verdict.partial, 0, "{verdict:?}");
}

#[test]
fn a_grant_that_comes_too_late_holds_nothing() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let lock = WriteLock::take(&gateway);
    // They queue for the first grant, each try of which takes 300 ms: the last ones have given up before it is their turn.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| gateway.hello().status)).collect();
        sleep(ms(1_400));
        lock.release();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&503), "{statuses:?}");
    // By then the late ones have had their turn, and what is held is written down.
    sleep(ms(1_500));
    assert_eq!(gateway.show()["held_micro_usd"], 0);
}

#[test]
fn a_kill_while_the_database_is_locked_loses_nothing() {
    let (witness, mut gateway, clients) = started();
    let lock = WriteLock::take(&gateway);
    sleep(away_time() / 2);
    gateway.kill();
    lock.release();
    gateway.serve();
    sleep(ms(300));
    let notes = clients.end();
    gateway.stop();
    audited(&gateway);
    let verdict = verify(&gateway, &witness, &notes, 2);
    eprintln!("killed while locked: {verdict:?}");
}

/// The database and what SQLite has beside it.
fn move_database(from: &Path, to: &Path) {
    for name in ["weir.db", "weir.db-wal", "weir.db-shm"] {
        if from.join(name).exists() {
            fs::rename(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[test]
fn a_database_that_is_moved_away_is_not_replaced_and_nothing_is_lost() {
    let (witness, mut gateway, clients) = started();
    let data = gateway.directory().join("data");
    let elsewhere = gateway.directory().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    move_database(&data, &elsewhere);
    sleep(away_time() / 2);
    gateway.kill();

    // A start must not take another database for this one: its journal would be of no session that it knows.
    let mut command = gateway.cli.command(&["serve"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("does not know the session"), "{said}\n{}", tail(&gateway));

    move_database(&elsewhere, &data);
    gateway.serve();
    sleep(ms(300));
    let notes = clients.end();
    gateway.stop();
    audited(&gateway);
    let verdict = verify(&gateway, &witness, &notes, 2);
    eprintln!("killed while moved away: {verdict:?}");
}
