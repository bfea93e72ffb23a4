use super::*;
use crate::clock::UnixMicros;

const TIER: Tier = Tier { requests_per_minute: 10, tokens_per_minute: 100, concurrent_requests: 2 };
const WIDE: Tier =
    Tier { requests_per_minute: 1_000_000, tokens_per_minute: 1_000_000, concurrent_requests: 1_000_000 };

#[test]
fn a_place_comes_back_by_drop_and_a_refusal_takes_none() {
    let (clock, _hand) = Clock::manual(UnixMicros(0));
    let (limits, account) = (Limits::new(1_000, clock), AccountId::new());
    let first = limits.enter(account, TIER, None).unwrap();
    let _second = limits.enter(account, TIER, None).unwrap();
    assert_eq!(limits.enter(account, TIER, None).err().unwrap().kind, Kind::RateLimitExceeded);
    drop(first);
    assert!(limits.enter(account, TIER, None).is_ok());
    assert_eq!(limits.standing(account, TIER, None).requests.remaining, 7);
}

#[test]
fn an_estimate_is_corrected_by_what_was_used() {
    let (clock, _hand) = Clock::manual(UnixMicros(0));
    let (limits, account) = (Limits::new(1_000, clock), AccountId::new());
    let mut permit = limits.enter(account, TIER, None).unwrap();
    assert_eq!(permit.take_tokens(101).unwrap_err().kind, Kind::TokensExceedLimit);
    permit.take_tokens(80).unwrap();
    permit.used_tokens(30);
    assert_eq!(permit.standing().tokens.remaining, 70);
    permit.forgive_request();
    assert_eq!(permit.standing().requests.remaining, 10);
}

#[test]
fn a_key_has_limits_of_its_own_besides_and_what_one_gave_the_refusal_of_the_other_gives_back() {
    let (clock, hand) = Clock::manual(UnixMicros(0));
    let (limits, account, key) = (Limits::new(1_000, clock), AccountId::new(), KeyId::new());
    let narrow = Tier { requests_per_minute: 3, tokens_per_minute: 50, concurrent_requests: 2 };
    let own = Some((key, narrow));
    let mut first = limits.enter(account, TIER, own).unwrap();
    assert_eq!(first.take_tokens(60).unwrap_err().kind, Kind::TokensExceedLimit);
    assert_eq!(limits.standing(account, TIER, None).tokens.remaining, 100);
    first.take_tokens(40).unwrap();
    let mut second = limits.enter(account, TIER, own).unwrap();
    assert_eq!(second.take_tokens(11).unwrap_err().kind, Kind::RateLimitExceeded);
    assert_eq!(limits.standing(account, TIER, None).tokens.remaining, 60);
    // The answer tells of what leaves less.
    assert_eq!((second.standing().requests.limit, second.standing().requests.remaining), (3, 1));
    drop((first, second));
    drop(limits.enter(account, TIER, own).unwrap());
    let refused = limits.enter(account, TIER, own).err().unwrap();
    assert!(refused.public.starts_with("This API key"), "{refused}");
    assert_eq!(limits.standing(account, TIER, None).requests.remaining, 7, "the fourth is not counted");
    // Another key of the account has what is left of the account's.
    assert!(limits.enter(account, TIER, None).is_ok());
    hand.advance(Duration::from_secs(20));
    assert!(limits.enter(account, TIER, own).is_ok());
}

#[test]
fn ten_thousand_keys_each_at_its_own_limit_are_not_refused_once_too_often_or_too_seldom() {
    let (clock, hand) = Clock::manual(UnixMicros(0));
    let (limits, account) = (Limits::new(1_000, clock), AccountId::new());
    let narrow = Tier { requests_per_minute: 5, tokens_per_minute: 50, concurrent_requests: 1 };
    let keys: Vec<KeyId> = (0..10_000).map(|_| KeyId::new()).collect();
    let ask = |key: KeyId| {
        let mut permit = limits.enter(account, WIDE, Some((key, narrow)))?;
        permit.take_tokens(10)
    };
    for round in 0..5 {
        for key in &keys {
            assert!(ask(*key).is_ok(), "round {round}");
        }
    }
    assert!(keys.iter().all(|key| ask(*key).is_err()));
    // One request is refilled in twelve seconds, for every key.
    hand.advance(Duration::from_secs(12));
    assert!(keys.iter().all(|key| ask(*key).is_ok()));
    assert!(keys.iter().all(|key| ask(*key).is_err()));
}

#[test]
fn near_the_bound_of_the_process_who_has_more_than_its_share_is_refused_first() {
    let (clock, _hand) = Clock::manual(UnixMicros(0));
    let limits = Limits::new(8, clock);
    let (greedy, modest, third) = (AccountId::new(), AccountId::new(), AccountId::new());
    let enter = |account| limits.enter(account, WIDE, None);
    let mut places: Vec<Permit> = (0..5).map(|_| enter(greedy).unwrap()).collect();
    places.push(enter(modest).unwrap());
    // Six of eight: from here on an account may have four.
    let refused = enter(greedy).err().unwrap();
    assert_eq!((refused.kind, refused.retry_after), (Kind::NoCapacity, Some(PLACE_WAIT)));
    places.push(enter(modest).unwrap());
    places.push(enter(third).unwrap());
    assert_eq!(enter(third).err().unwrap().kind, Kind::NoCapacity, "full");
    assert_eq!(limits.standing(third, WIDE, None).requests.remaining, 999_999, "a refusal is not counted");
    places.clear();
    assert!((0..6).map(|_| enter(greedy)).collect::<Vec<_>>().iter().all(Result::is_ok));
}

#[test]
fn other_limits_hold_at_once_and_forget_neither_what_was_taken_nor_who_is_under_way() {
    let (clock, _hand) = Clock::manual(UnixMicros(0));
    let (limits, account) = (Limits::new(1_000, clock), AccountId::new());
    let mut first = limits.enter(account, TIER, None).unwrap();
    first.take_tokens(80).unwrap();
    let wider = Tier { requests_per_minute: 20, tokens_per_minute: 200, concurrent_requests: 3 };
    let second = limits.enter(account, wider, None).unwrap();
    assert_eq!((first.standing().requests.limit, first.standing().requests.remaining), (20, 18));
    assert_eq!(second.standing().tokens.remaining, 120);
    let narrower = Tier { requests_per_minute: 10, tokens_per_minute: 60, concurrent_requests: 2 };
    let refused = limits.enter(account, narrower, None).err().unwrap();
    assert!(refused.public.contains("2 requests under way"), "{refused}");
    drop(second);
    let mut third = limits.enter(account, narrower, None).unwrap();
    assert_eq!(third.take_tokens(61).unwrap_err().kind, Kind::TokensExceedLimit);
    assert_eq!(third.take_tokens(1).unwrap_err().kind, Kind::RateLimitExceeded, "80 of 60 are taken");
    assert_eq!(third.standing().requests.remaining, 7);
}

#[test]
fn another_bound_of_the_process_holds_at_once() {
    let (clock, _hand) = Clock::manual(UnixMicros(0));
    let (limits, account) = (Limits::new(1, clock), AccountId::new());
    let _first = limits.enter(account, WIDE, None).unwrap();
    assert_eq!(limits.enter(account, WIDE, None).err().unwrap().kind, Kind::NoCapacity);
    limits.set_requests_max(10);
    assert!(limits.enter(account, WIDE, None).is_ok());
}
