//! The life of accounts in the real store beside a naive ledger: whatever is done in whatever order, the audit finds nothing, and balance,
//! debt and lots are what the naive ledger says.

mod naive;
mod play;
mod seen;

use play::{Op, Play};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use seen::Seen;
use std::cell::RefCell;
use weir::store::LotKind;

fn op() -> impl Strategy<Value = Op> {
    let (account, session, lot) = (0..play::ACCOUNTS, 0_usize..3, 0_usize..4);
    let key = || prop::option::weighted(0.3, 0_u8..3);
    let kind = prop_oneof![3 => Just(LotKind::Paid), 1 => Just(LotKind::Promotional), 1 => Just(LotKind::Adjustment)];
    let cost = prop_oneof![4 => 0_i64..8_000_000, 1 => 0_i64..40_000_000];
    let charge = (0..play::ACCOUNTS, cost, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(account, cost, is_refused, has_died)| play::Charge { account, cost, is_refused, has_died },
    );
    prop_oneof![
        4 => (account.clone(), kind, 1_i64..150, key())
            .prop_map(|(account, kind, amount, key)| match key {
                // Mostly the same once more.
                Some(key) => Op::Credit { account: usize::from(key) % play::ACCOUNTS, kind: LotKind::Paid, amount: 20 + amount / 120, key: Some(key) },
                None => Op::Credit { account, kind, amount, key: None },
            }),
        2 => Just(Op::Open),
        6 => (session.clone(), account.clone(), 0_i64..12, 0_i64..40)
            .prop_map(|(session, account, need, want)| Op::Grant { session, account, need, want }),
        3 => (session.clone(), account.clone(), 1_i64..40)
            .prop_map(|(session, account, most)| Op::GiveBack { session, account, most }),
        7 => (session.clone(), prop::collection::vec(charge, 1..5), any::<bool>())
            .prop_map(|(session, charges, is_answer_lost)| Op::Batch { session, charges, is_answer_lost }),
        3 => session.clone().prop_map(Op::Collect),
        2 => (session, any::<bool>()).prop_map(|(session, is_lost)| Op::End { session, is_lost }),
        1 => account.clone().prop_map(Op::Recall),
        1 => (account.clone(), any::<bool>()).prop_map(|(account, is_active)| Op::SetActive { account, is_active }),
        2 => (account.clone(), lot.clone(), prop::bool::weighted(0.2)).prop_map(|(account, lot, has_ended)| Op::Freeze { account, lot, has_ended }),
        5 => (account.clone(), lot, key()).prop_map(|(account, lot, key)| Op::Pay {
                key: key.map(|key| key * 2 + u8::try_from(lot).unwrap()),
                account,
                lot,
            }),
        1 => account.clone().prop_map(Op::Unfreeze),
        2 => account.prop_map(Op::WriteOff),
    ]
}

#[test]
fn whatever_happens_to_accounts_the_books_agree_with_a_naive_ledger() {
    let config = Config { cases: 250, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = RefCell::new(Seen::default());
    let played = TestRunner::new(config).run(&prop::collection::vec(op(), 1..50), |ops| {
        runtime.block_on(async {
            let mut play = Play::begin().await;
            for op in &ops {
                play.step(op).await?;
                play.compare(op).await?;
            }
            seen.borrow_mut().add(&play.seen);
            Ok(())
        })
    });
    if let Err(error) = played {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    eprintln!("{seen:?}");
    seen.assert_all();
}
