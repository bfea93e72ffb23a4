//! `kill -9` under load, again and again.

use super::clients::{Clients, Random, seed, verify};
use super::witness::Witness;
use super::{audited, number};
use crate::support::gateway::Gateway;
use crate::support::ms;
use std::time::Instant;

/// What two clients can be served at the same time beyond what their account has, in micro-dollars: an answer of the longest runs costs so
/// much more than is held for it.
const OVERSPEND_MAX_MICRO: i64 = 2 * 30_000;

#[test]
fn a_kill_loses_no_debit_and_doubles_none() {
    let kills = number("WEIR_KILLS", 20);
    let seed = seed();
    let mut random = Random::new(seed);
    let witness = Witness::start();
    let mut gateway = Gateway::builder()
        .provider_at("main", witness.address, "")
        .standard_models("main")
        .credit("100000")
        .start();
    let one = gateway.account.clone();
    let many: Vec<_> = (0..6).map(|_| gateway.new_account("10000")).collect();
    // Runs dry, and answers cost more than is held for them.
    let poor = gateway.new_account("0.05");
    let all = [many.clone(), vec![one.clone(), poor.clone()]].concat();
    let accounts = [vec![one.clone()], vec![one.clone()], vec![one], many, all, vec![poor.clone()]];
    let begun = Instant::now();
    let clients = Clients::start(gateway.address(), seed, &accounts);
    for kill in 0..kills {
        std::thread::sleep(ms(60 + random.below(500)));
        gateway.kill();
        audited(&gateway);
        if random.below(3) == 0 {
            // Now and then in the middle of its start, while it recovers the session before.
            gateway.spawn();
            std::thread::sleep(ms(random.below(120)));
            gateway.kill();
            audited(&gateway);
        }
        if kill % 4 == 3 {
            // What is owed is paid from it first.
            gateway.add_credit(&poor.id, "0.02");
        }
        gateway.serve();
        let audit = audited(&gateway);
        assert_eq!(
            (&audit["live_sessions"], &audit["unrecovered_sessions"]),
            (&1.into(), &0.into()),
            "{audit}"
        );
        let shown = gateway.cli.json(&["account", "show", &poor.id]);
        let (balance, owed) = (shown["balance_micro_usd"].as_i64(), shown["owed_micro_usd"].as_i64());
        assert!(balance >= Some(0) && owed <= Some(OVERSPEND_MAX_MICRO), "{shown}");
    }
    let notes = clients.end();
    let status = gateway.stop();
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    let audit = audited(&gateway);
    assert_eq!((&audit["live_sessions"], &audit["leased_micro_usd"]), (&0.into(), &0.into()), "{audit}");
    let verdict = verify(&gateway, &witness, &notes, kills * accounts.len() as u64);
    assert!(verdict.whole as u64 > kills && verdict.died > 0, "{verdict:?}");
    let known = |(status, code): &(u16, String)| {
        matches!((status, code.as_str()), (402, _) | (503, "no_capacity")) || code.is_empty()
    };
    assert!(notes.refused.keys().all(known), "{:?}", notes.refused);
    eprintln!(
        "{kills} kills in {:?}, {} asked: {verdict:?}; refused {:?}",
        begun.elapsed(),
        notes.asked,
        notes.refused
    );
}
