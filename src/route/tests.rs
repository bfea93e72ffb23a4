//! What holds of every choice, whatever was seen of the candidates.

use super::*;
use crate::clock::{Clock, Hand, UnixMicros};
use crate::provider::dialect;
use proptest::prelude::*;
use std::time::Duration;

const HEALTH: HealthSettings = HealthSettings {
    failures_max: 2,
    error_percent: 50,
    error_window: Duration::from_secs(10),
    error_requests_min: 20,
    backoff: Duration::from_secs(1),
    backoff_max: Duration::from_secs(8),
    cool_down_max: Duration::from_secs(60),
};
const BUDGET: RetryBudgetSettings = RetryBudgetSettings { percent: 20, min_per_second: 10 };

fn time() -> (Clock, Hand) {
    Clock::manual(UnixMicros(0))
}

fn candidate(name: &str, priority: u32, weight: u32) -> Candidate {
    Candidate {
        provider: Arc::new(Provider {
            name: ProviderName::from(name),
            dialect: dialect("openai").unwrap(),
            api_key: None,
            is_drained: name.starts_with("drained"),
        }),
        upstream_model: "m".into(),
        priority,
        weight,
        cost: Cost::default(),
        health: Arc::new(Health::new(HEALTH)),
    }
}

fn model(clock: &Clock, candidates: Vec<Candidate>) -> Model {
    Model {
        name: ModelName::from("m"),
        context_tokens: 1,
        max_output_tokens: None,
        hidden_reasoning: false,
        candidates,
        order: Order::Weight,
        is_sticky: false,
        retry: Retry::Safe,
        attempts_max: 4,
        fallback: Vec::new(),
        budget: RetryBudget::new(BUDGET, clock.now()),
    }
}

fn wanted(models: &[&Arc<Model>], random: u64) -> Wanted {
    Wanted {
        chain: models.iter().map(|model| Arc::clone(model)).collect(),
        endpoint: Endpoint::ChatCompletions,
        is_streamed: false,
        affinity: None,
        input_tokens: 100,
        output_tokens: 100,
        random,
    }
}

fn begin(model: &Arc<Model>, random: u64, clock: &Clock) -> Plan {
    Plan::begin(wanted(&[model], random), clock.now()).expect("a candidate")
}

fn name(plan: &Plan) -> String {
    plan.candidate().provider.name.to_string()
}

/// Makes the candidate's circuit open.
fn break_it(candidate: &Candidate, clock: &Clock) {
    for _ in 0..HEALTH.failures_max {
        let mut trial = candidate.health.try_it(false, clock.now()).unwrap();
        trial.failed(clock.now(), 0, None);
    }
    assert!(matches!(candidate.health.standing(clock.now()), Standing::Open(_)));
}

#[test]
fn every_candidate_is_tried_once_by_priority_and_then_there_is_no_next() {
    let (clock, _hand) = time();
    let model =
        Arc::new(model(&clock, vec![candidate("late", 1, 9), candidate("a", 0, 1), candidate("b", 0, 5)]));
    for random in 0..100 {
        let mut plan = begin(&model, random, &clock);
        let mut seen = vec![name(&plan)];
        while plan.advance(clock.now()) {
            seen.push(name(&plan));
        }
        assert_eq!(seen.last().unwrap(), "late");
        seen.sort();
        assert_eq!(seen, ["a", "b", "late"]);
    }
}

#[test]
fn first_places_follow_the_weights_within_sampling_error() {
    let (clock, _hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("light", 0, 1), candidate("heavy", 0, 3)]));
    let heavy = (0..10_000).filter(|random| name(&begin(&model, *random, &clock)) == "heavy").count();
    // 7,500 expected; five standard deviations are 217.
    assert!((7_283..=7_717).contains(&heavy), "{heavy}");
}

#[test]
fn weights_hold_while_many_requests_are_under_way() {
    let (clock, hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("light", 0, 1), candidate("heavy", 0, 3)]));
    let (mut under_way, mut heavy) = (std::collections::VecDeque::new(), 0_u32);
    for random in 0..10_000 {
        hand.advance(Duration::from_millis(10));
        let plan = begin(&model, random, &clock);
        heavy += u32::from(name(&plan) == "heavy");
        under_way.push_back(plan);
        if under_way.len() > 40 {
            under_way.pop_front().unwrap().trial().answered(clock.now());
        }
    }
    assert!((7_283..=7_717).contains(&heavy), "{heavy}");
}

#[test]
fn a_clearly_slower_candidate_gets_less_than_its_weight_and_not_nothing() {
    let (clock, hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("slow", 0, 1), candidate("quick", 0, 1)]));
    for (candidate, millis) in model.candidates.iter().zip([900, 100]) {
        let mut trial = candidate.health.try_it(false, clock.now()).unwrap();
        let begun = clock.now();
        trial.answered(begun + Duration::from_millis(millis));
    }
    hand.advance(Duration::from_secs(1));
    let first = |random| begin(&model, random, &clock);
    let slow = (0..10_000).filter(|random| name(&first(*random)) == "slow").count();
    // Only where both draws are the slow one: a quarter.
    assert!((2_250..=2_750).contains(&slow), "{slow}");
    assert!((0..100).any(|random| first(random).why() == Why::Latency));
}

#[test]
fn a_circuit_opens_after_failures_in_a_row_and_closes_by_one_probe_at_a_time() {
    let (clock, hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("bad", 0, 1_000_000), candidate("good", 0, 1)]));
    break_it(&model.candidates[0], &clock);
    assert_eq!(name(&begin(&model, 1, &clock)), "good");
    hand.advance(HEALTH.backoff);
    let mut probe = begin(&model, 1, &clock);
    assert_eq!((name(&probe).as_str(), probe.why()), ("bad", Why::Probe));
    // While it is under way nobody else is sent there.
    assert_eq!(name(&begin(&model, 1, &clock)), "good");
    assert!(probe.trial().failed(clock.now(), 0, None));
    drop(probe);
    // Twice as long this time.
    hand.advance(HEALTH.backoff);
    assert_eq!(name(&begin(&model, 1, &clock)), "good");
    hand.advance(HEALTH.backoff);
    // A probe that comes to nothing gives its place back.
    drop(begin(&model, 1, &clock));
    let mut probe = begin(&model, 1, &clock);
    assert_eq!(probe.why(), Why::Probe);
    probe.trial().answered(clock.now());
    assert_eq!(
        (name(&begin(&model, 1, &clock)).as_str(), begin(&model, 1, &clock).why()),
        ("bad", Why::Weight)
    );
}

#[test]
fn a_circuit_opens_when_too_many_requests_fail_though_not_in_a_row() {
    let (clock, hand) = time();
    let candidate = candidate("flaky", 0, 1);
    let mut opened_at = None;
    for number in 0..40 {
        hand.advance(Duration::from_millis(100));
        let mut trial = candidate.health.try_it(false, clock.now()).unwrap();
        if number % 2 == 0 {
            trial.completed(clock.now());
        } else if trial.failed(clock.now(), 0, None) {
            opened_at.get_or_insert(number);
        }
    }
    assert_eq!(opened_at, Some(19));
}

#[test]
fn a_candidate_that_says_when_to_come_back_is_left_alone_until_then() {
    let (clock, hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("limited", 0, 1_000_000), candidate("other", 0, 1)]));
    let mut plan = begin(&model, 1, &clock);
    assert!(!plan.trial().failed(clock.now(), 0, Some(Duration::from_secs(7))));
    assert_eq!(plan.why(), Why::Weight);
    drop(plan);
    hand.advance(Duration::from_millis(6_999));
    assert_eq!(name(&begin(&model, 1, &clock)), "other");
    hand.advance(Duration::from_millis(1));
    assert_eq!(name(&begin(&model, 1, &clock)), "limited");
    // However long it says: at most a minute.
    begin(&model, 1, &clock).trial().failed(clock.now(), 0, Some(Duration::from_secs(86_400)));
    hand.advance(HEALTH.cool_down_max);
    assert_eq!(name(&begin(&model, 1, &clock)), "limited");
}

#[test]
fn when_all_have_said_to_come_back_one_request_tries_and_the_others_are_told_when() {
    let (clock, hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("only", 0, 1)]));
    begin(&model, 1, &clock).trial().failed(clock.now(), 0, Some(Duration::from_secs(7)));
    let mut trying = begin(&model, 1, &clock);
    assert_eq!(trying.why(), Why::LastResort);
    hand.advance(Duration::from_secs(2));
    let told = Plan::begin(wanted(&[&model], 1), clock.now()).err().unwrap();
    assert_eq!(told.retry_after, Duration::from_secs(5));
    trying.trial().answered(clock.now());
    assert_eq!(begin(&model, 1, &clock).why(), Why::Only);
}

#[test]
fn when_all_circuits_are_open_the_one_that_is_due_first_is_tried_by_all() {
    let (clock, hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("a", 0, 1), candidate("b", 0, 1)]));
    break_it(&model.candidates[1], &clock);
    hand.advance(Duration::from_millis(100));
    break_it(&model.candidates[0], &clock);
    let plans: Vec<Plan> = (0..10).map(|random| begin(&model, random, &clock)).collect();
    assert!(plans.iter().all(|plan| name(plan) == "b" && plan.why() == Why::LastResort));
    // The other is not tried behind it: a request fails once on what is known to be broken.
    assert!(plans.into_iter().all(|mut plan| !plan.advance(clock.now())));
}

#[test]
fn a_drained_provider_is_chosen_when_nothing_else_is_left() {
    let (clock, _hand) = time();
    let model = Arc::new(model(&clock, vec![candidate("drained", 0, 1_000_000), candidate("other", 3, 1)]));
    let other = Arc::new(self::model(&clock, vec![candidate("elsewhere", 0, 1)]));
    let mut plan = Plan::begin(wanted(&[&model, &other], 1), clock.now()).unwrap();
    let mut seen = vec![(name(&plan), plan.why())];
    while plan.advance(clock.now()) {
        seen.push((name(&plan), plan.why()));
    }
    let want = [("other", Why::Priority), ("elsewhere", Why::Fallback), ("drained", Why::LastResort)];
    assert_eq!(seen, want.map(|(name, why)| (name.to_owned(), why)));
    break_it(&model.candidates[1], &clock);
    assert_eq!(name(&begin(&model, 1, &clock)), "drained");
}

#[test]
fn the_cheapest_and_the_quickest_are_found_where_that_is_asked_for() {
    let (clock, _hand) = time();
    let priced = |name, input, output| {
        let cost = Cost { input: PricePicos(input), output: PricePicos(output) };
        Candidate { cost, ..candidate(name, 0, 1) }
    };
    let by_cost = Model { order: Order::Cost, ..model(&clock, vec![priced("a", 1, 9), priced("b", 4, 4)]) };
    let by_cost = Arc::new(by_cost);
    assert_eq!(
        (name(&begin(&by_cost, 1, &clock)).as_str(), begin(&by_cost, 1, &clock).why()),
        ("b", Why::Cost)
    );
    let much_input = Wanted { input_tokens: 10_000, ..wanted(&[&by_cost], 1) };
    assert_eq!(name(&Plan::begin(much_input, clock.now()).unwrap()), "a");

    let by_latency =
        Model { order: Order::Latency, ..model(&clock, vec![candidate("a", 0, 1), candidate("b", 0, 1)]) };
    let by_latency = Arc::new(by_latency);
    let mut trial = by_latency.candidates[0].health.try_it(false, clock.now()).unwrap();
    trial.answered(clock.now() + Duration::from_secs(1));
    assert_eq!(
        (name(&begin(&by_latency, 1, &clock)).as_str(), begin(&by_latency, 1, &clock).why()),
        ("b", Why::Latency)
    );
}

#[test]
fn a_conversation_stays_put_and_moves_only_when_it_must() {
    let (clock, _hand) = time();
    let names = ["a", "b", "c"];
    let sticky = Model { is_sticky: true, ..model(&clock, names.map(|name| candidate(name, 0, 1)).into()) };
    let sticky = Arc::new(sticky);
    let place = |affinity: u64, random: u64| {
        let plan =
            Plan::begin(Wanted { affinity: Some(affinity), ..wanted(&[&sticky], random) }, clock.now());
        let plan = plan.unwrap();
        assert_eq!(plan.why(), Why::Sticky);
        name(&plan)
    };
    let before: Vec<String> = (0..3_000).map(|affinity| place(affinity, 1)).collect();
    assert!((0..100).all(|random| place(7, random) == before[7]));
    for each in names {
        let share = before.iter().filter(|name| *name == each).count();
        assert!((870..=1_130).contains(&share), "{each} has {share} of 3,000");
    }
    break_it(&sticky.candidates[0], &clock);
    for (affinity, before) in before.iter().enumerate() {
        let after = place(affinity as u64, 1);
        assert!(after != "a" && (before == "a" || *before == after));
    }
}

/// Something that happens to a candidate.
#[derive(Clone, Debug)]
enum Event {
    Fails(usize),
    Limited(usize, u64),
    Answers(usize),
    Time(u64),
    Begins(u64),
    Ends,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..4_usize).prop_map(Event::Fails),
        (0..4_usize, 0..5_000_u64).prop_map(|(at, wait)| Event::Limited(at, wait)),
        (0..4_usize).prop_map(Event::Answers),
        (0..3_000_u64).prop_map(Event::Time),
        any::<u64>().prop_map(Event::Begins),
        Just(Event::Ends),
    ]
}

proptest! {
    #[test]
    fn an_open_circuit_is_never_chosen_while_a_closed_one_exists(
        events in prop::collection::vec(event(), 1..200),
        sticky in any::<bool>(),
    ) {
        let (clock, hand) = time();
        let candidates =
            vec![candidate("a", 0, 1), candidate("b", 0, 7), candidate("c", 1, 1), candidate("drained", 0, 1)];
        let model = Arc::new(Model { is_sticky: sticky, ..model(&clock, candidates) });
        let health = |at: usize| &model.candidates[at].health;
        let standings = |clock: &Clock| (0..4).map(|at| health(at).standing(clock.now())).collect::<Vec<_>>();
        let mut under_way: Vec<Plan> = Vec::new();
        for event in events {
            match event {
                Event::Time(millis) => hand.advance(Duration::from_millis(millis)),
                Event::Ends => under_way.truncate(under_way.len() / 2),
                Event::Fails(at) => {
                    let trial = health(at).try_it(false, clock.now());
                    trial.map(|mut trial| trial.failed(clock.now(), 3, None));
                }
                Event::Limited(at, wait) => {
                    let trial = health(at).try_it(false, clock.now());
                    let come_back = Some(Duration::from_millis(wait));
                    trial.map(|mut trial| trial.failed(clock.now(), wait, come_back));
                }
                Event::Answers(at) => {
                    let trial = health(at).try_it(false, clock.now());
                    trial.into_iter().for_each(|mut trial| trial.answered(clock.now()));
                }
                Event::Begins(random) => {
                    let before = standings(&clock);
                    let can_be_chosen = before.iter().any(|it| matches!(it, Standing::Closed | Standing::HalfOpen));
                    let asked = Wanted { affinity: Some(random), ..wanted(&[&model], random) };
                    match Plan::begin(asked, clock.now()) {
                        Ok(plan) => {
                            let at = model.candidates.iter().position(|it| std::ptr::eq(it, plan.candidate())).unwrap();
                            let chosen = before[at];
                            let is_fit = matches!(chosen, Standing::Closed | Standing::HalfOpen);
                            prop_assert!(is_fit || !can_be_chosen, "{chosen:?} of {before:?}");
                            if chosen == Standing::HalfOpen {
                                // Nobody else is let through until it is judged.
                                let after = health(at).standing(clock.now());
                                prop_assert!(matches!(after, Standing::Open(_)), "{after:?}");
                            }
                            under_way.push(plan);
                        }
                        Err(_) => prop_assert!(!can_be_chosen),
                    }
                }
            }
        }
        drop(under_way);
        prop_assert!((0..4).all(|at| health(at).outstanding() == 0));
    }
}
