//! One process over a simulated disk and database, what is known of it, and what must be true after its end.

use super::bill::{Bill, Event, row_of, settle_of};
use super::database::{Faults, SimDatabase, Tables};
use super::disk::{Crash, During, SimDisk};
use super::rng::Rng;
use futures::FutureExt;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use weir::clock::{Clock, UnixMicros};
use weir::ids::{AccountId, RequestId, SessionId};
use weir::ledger::journal::{Durability, Journal, Progress, Reservation, Sent, Settings};
use weir::ledger::{WriteError, replay, write};
use weir::store::RequestRow;
use weir::usage::Usage;

pub(super) struct World {
    pub(super) disk: SimDisk,
    journal: Journal,
    database: Arc<SimDatabase>,
    session: SessionId,
    durability: Durability,
    model: Mutex<Model>,
    /// The disk calls back: what happens then happens beside it.
    depth: Mutex<Vec<During>>,
}

struct Model {
    rng: Rng,
    accounts: Vec<AccountId>,
    /// What each account's lease has, and what of it is held or spent.
    leases: BTreeMap<AccountId, (i64, i64)>,
    requests: Vec<Request>,
    history: Vec<(u64, usize, Event)>,
    queue: VecDeque<RequestRow>,
    applied_seq: u64,
    /// Rows that the writer has asked for and got no answer.
    asked: usize,
    marks: Marks,
    may_fail: bool,
}

/// What was known when the last step was done.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    returned_seq: u64,
    durable_seq: u64,
    is_failed: bool,
    errors: u64,
}

struct Request {
    sent: Sent,
    room: Option<Reservation>,
    hold: i64,
    sends: u32,
    output: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Held,
    Open,
    Ended,
}

impl World {
    /// A new process.
    pub(super) fn new(mut rng: Rng, database: Arc<SimDatabase>, accounts: Vec<AccountId>) -> Arc<World> {
        let disk = SimDisk::new(rng.fork());
        let segment_bytes = [16_384, 20_480, 32_768][rng.index(3)];
        let durability = [Durability::Group, Durability::Strict, Durability::Os][rng.index(3)];
        let settings = Settings { durability, segment_bytes, max_bytes: segment_bytes * (4 + rng.below(10)) };
        let journal = Journal::without_threads(disk.clone(), settings).unwrap();
        let session = SessionId::new();
        database.tables().open_session(session);
        let world = Arc::new(World {
            disk,
            journal,
            database,
            session,
            durability,
            model: Mutex::new(Model {
                rng,
                accounts,
                leases: BTreeMap::new(),
                requests: Vec::new(),
                history: Vec::new(),
                queue: VecDeque::new(),
                applied_seq: 0,
                asked: 0,
                marks: Marks::default(),
                may_fail: false,
            }),
            depth: Mutex::new(Vec::new()),
        });
        let within: Weak<World> = Arc::downgrade(&world);
        world.disk.set_hook(Some(Arc::new(move |during| {
            if let Some(world) = within.upgrade() {
                world.beside(during);
            }
        })));
        world
    }

    /// Does something. `false` when the process is no more.
    pub(super) fn step(&self) -> bool {
        let chosen = self.model().rng.below(500);
        match chosen {
            0..=339 => self.request(),
            340..=399 => _ = self.journal.sync_once(),
            400..=445 => self.keep(),
            446..=489 => self.write_batch(),
            490..=498 => self.fault(),
            _ => self.crash(),
        }
        self.note();
        !self.disk.is_dead()
    }

    /// Something that another thread does while one waits for the disk.
    fn beside(&self, during: During) {
        if self.disk.is_dead() || self.depth().len() > 1 {
            return;
        }
        self.depth().push(during);
        let steps = self.model().rng.below(8);
        for _ in 0..steps {
            let may_sync = !self.depth().contains(&During::Sync);
            let may_keep = !self.depth().iter().any(|depth| *depth != During::Sync);
            let chosen = self.model().rng.below(100);
            match chosen {
                0..=79 => self.request(),
                80..=87 => self.write_batch(),
                88..=91 if may_sync => _ = self.journal.sync_once(),
                92..=95 if may_keep => self.keep(),
                96 => self.crash(),
                _ => self.fault(),
            }
            self.note();
        }
        self.depth().pop();
    }

    fn keep(&self) {
        let kept = self.journal.keep_once();
        assert!(kept.is_ok() || self.model().may_fail || self.disk.is_dead(), "{kept:?}");
    }

    /// One of the things that requests do.
    fn request(&self) {
        let mut model = self.model();
        let count = model.requests.len();
        let chosen = model.rng.index(count + 1);
        // The younger ones most of the time: some last long.
        let Some(at) = (chosen..count).find(|at| model.requests[*at].stage != Stage::Ended) else {
            return self.begin(&mut model);
        };
        let (stage, output) = (model.requests[at].stage, model.requests[at].output);
        match (stage, model.rng.below(10)) {
            (Stage::Held, 0) => self.release(&mut model, at),
            (Stage::Held, _) | (Stage::Open, 0) if output == 0 && model.requests[at].sends < 5 => {
                self.send(&mut model, at);
            }
            (Stage::Held, _) => self.release(&mut model, at),
            (Stage::Open, 1) if output == 0 => {
                let room = model.requests[at].room.take().unwrap();
                let seq = self.journal.failed(&room, model.requests[at].sent.request_id);
                (model.requests[at].room, model.requests[at].stage) = (Some(room), Stage::Held);
                model.happened(seq, at, Event::Failed);
            }
            (Stage::Open, 2..=6) => {
                let output_tokens = output + 1 + model.rng.below(50);
                model.requests[at].output = output_tokens;
                let sent = &model.requests[at].sent;
                let (request_id, input_tokens) = (sent.request_id, sent.input_tokens + 3);
                let progress = Progress { request_id, input_tokens, output_tokens };
                if let Some(seq) = self.journal.progress(progress) {
                    model.happened(seq, at, Event::Progress(progress));
                }
            }
            (Stage::Open | Stage::Ended, _) => self.settle(&mut model, at),
        }
    }

    fn begin(&self, model: &mut Model) {
        let Some(room) = self.journal.reserve() else { return };
        let account = model.accounts[model.rng.index(model.accounts.len())];
        let hold = 1 + i64::try_from(model.rng.below(5_000)).unwrap();
        let (granted, used) = model.leases.entry(account).or_default();
        if *granted < *used + hold {
            *granted += self.database.tables().grant(self.session, account, 2 * hold);
        }
        if *granted < *used + hold {
            return;
        }
        *used += hold;
        let text = |rng: &mut Rng, most: usize| "x".repeat(rng.index(most));
        let rng = &mut model.rng;
        let sent = Sent {
            request_id: rng.bytes16(),
            account: account.0.into_bytes(),
            key: rng.bytes16(),
            created_at: i64::try_from(rng.below(1 << 50)).unwrap(),
            client_request_id: rng.chance(2).then(|| text(rng, 511)),
            model: text(rng, 30),
            provider: text(rng, 10),
            upstream_model: text(rng, 400),
            service_tier: rng.chance(2).then(|| text(rng, 8)),
            stream: rng.chance(2),
            price_version: rng.below(9),
            input_tokens: rng.below(500),
            input_price: i64::try_from(rng.below(4)).unwrap(),
            output_price: i64::try_from(rng.below(9)).unwrap(),
        };
        model.requests.push(Request {
            sent,
            room: Some(room),
            hold,
            sends: 0,
            output: 0,
            stage: Stage::Held,
        });
        if model.rng.chance(60) {
            let id = RequestId::from_slice(&model.requests.last().unwrap().sent.request_id).unwrap();
            self.database.tables().poison.insert(id);
        }
    }

    fn send(&self, model: &mut Model, at: usize) {
        let request = &mut model.requests[at];
        request.sent.provider = format!("p{}", request.sent.provider);
        let seq = self.journal.sent(request.room.as_ref().unwrap(), &request.sent);
        (request.stage, request.sends) = (Stage::Open, request.sends + 1);
        let sent = request.sent.clone();
        model.happened(seq, at, Event::Sent(sent));
    }

    fn release(&self, model: &mut Model, at: usize) {
        let account = AccountId::from_slice(&model.requests[at].sent.account).unwrap();
        let (_, used) = model.leases.get_mut(&account).unwrap();
        *used -= model.requests[at].hold;
        model.requests[at].stage = Stage::Ended;
        model.requests[at].room = None;
    }

    fn settle(&self, model: &mut Model, at: usize) {
        let request = &mut model.requests[at];
        request.stage = Stage::Ended;
        let account = AccountId::from_slice(&request.sent.account).unwrap();
        let cost = i64::try_from(model.rng.below(6_000)).unwrap();
        let (granted, used) = model.leases.get_mut(&account).unwrap();
        let covered = cost.min(request.hold + *granted - *used);
        *used += covered - request.hold;
        let mut row = row_of(&request.sent, 0, cost, cost - covered);
        row.usage = Usage { input: 1 + model.rng.below(9), output: model.rng.below(9), ..Usage::default() };
        let settle = settle_of(&row);
        let room = request.room.take().unwrap();
        let queue = &mut model.queue;
        let seq = self.journal.settle(&room, &settle, |seq| {
            row.seq = seq;
            queue.push_back(row.clone());
        });
        model.happened(seq, at, Event::Settled(row));
    }

    /// The writer's turn.
    fn write_batch(&self) {
        let (batch, applied_seq) = {
            let mut model = self.model();
            // What may have been taken already is not asked for in smaller pieces.
            let most = model.asked.max(1 + model.rng.index(40));
            model.asked = most;
            (model.queue.iter().take(most).cloned().collect::<Vec<_>>(), model.applied_seq)
        };
        if self.disk.is_dead() || batch.is_empty() {
            return;
        }
        let write = write(&*self.database, self.session, applied_seq, &batch, UnixMicros(1));
        match write.now_or_never().expect("the simulated database answers at once") {
            Ok(written) => {
                let mut model = self.model();
                assert_eq!(written.applied_seq, batch.last().unwrap().seq);
                (model.applied_seq, model.asked) = (written.applied_seq, 0);
                model.queue.retain(|row| row.seq > written.applied_seq);
                drop(model);
                self.journal.applied(written.applied_seq);
            }
            Err(WriteError::Store(_)) => {}
            Err(set_back @ WriteError::SetBack { .. }) => panic!("{set_back}"),
        }
        let collects = self.model().rng.chance(4);
        if collects {
            use weir::ledger::Database as _;
            let collected = self.database.collect_over(self.session, UnixMicros(1)).now_or_never();
            drop(collected.expect("the simulated database answers at once"));
        }
    }

    fn fault(&self) {
        let mut model = self.model();
        let (kind, after) = (model.rng.below(8), model.rng.small(6));
        model.may_fail |= kind < 3;
        let crash = if model.rng.chance(2) { Crash::Kill } else { Crash::PowerCut };
        self.disk.with_faults(|faults| match kind {
            0 => faults.write_error_in = Some(after),
            1 => faults.sync_error_in = Some(after),
            2 | 3 => faults.has_no_space = kind == 2,
            4 => faults.crash_in_write = Some((after * after, crash)),
            _ => {}
        });
        let faults = &mut self.database.tables().faults;
        match kind {
            5 => faults.away = after * 3,
            6 => faults.lost_once_in = 2 + u64::from(after),
            7 => faults.lost_once_in = 0,
            _ => {}
        }
    }

    fn crash(&self) {
        let mut model = self.model();
        let crash = if model.rng.chance(2) { Crash::Kill } else { Crash::PowerCut };
        drop(model);
        self.disk.crash(crash);
    }

    /// What is known after a step, as long as there is somebody to know it.
    fn note(&self) {
        if self.disk.is_dead() {
            return;
        }
        let stats = self.journal.stats();
        let mut model = self.model();
        let marks = Marks {
            returned_seq: model.history.last().map_or(0, |(seq, _, _)| *seq),
            durable_seq: stats.durable_seq,
            is_failed: stats.is_failed,
            errors: self.disk.errors(),
        };
        assert!(marks.durable_seq >= model.marks.durable_seq && stats.appended_seq >= marks.returned_seq);
        assert!(
            !stats.is_failed || marks.errors > 0,
            "a full disk fails nothing that was admitted: {stats:?}"
        );
        model.marks = marks;
    }

    /// Ends the process, if it has not ended, recovers what it left, and holds it against what is known.
    pub(super) fn recover(&self) {
        if !self.disk.is_dead() {
            self.crash();
        }
        self.disk.set_hook(None);
        let model = self.model();
        let (crash, left) = self.disk.left();
        let before = self.database.tables().rows.clone();
        let applied_seq = self.database.tables().applied_seq(self.session);
        let (clock, _hand) = Clock::manual(UnixMicros(1));
        let mut last_seq = None;
        for attempt in 0.. {
            let scanned =
                weir::ledger::journal::scan(&left).expect("nothing that was on the disk is damaged");
            let seqs: Vec<u64> = scanned.records().map(|(seq, _)| seq).collect();
            assert!(seqs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "no gap: {seqs:?}");
            last_seq = seqs.last().copied();
            if attempt > 30 {
                self.database.tables().faults = Faults::default();
            }
            let replayed = replay(self.session, scanned, &*self.database, &clock).now_or_never();
            if replayed.expect("the simulated database answers at once").is_ok() {
                break;
            }
        }
        assert!(self.database.tables().is_closed(self.session));
        let must_seq = model.must_seq(crash, self.durability, self.disk.errors());
        let is_kept = last_seq.map_or(must_seq <= applied_seq, |last_seq| last_seq >= must_seq);
        assert!(is_kept, "{crash:?}: {last_seq:?} is left, {:?}", model.marks);
        let upto = last_seq.unwrap_or(must_seq);
        hold_against(&model, &before, upto, &self.database.tables());
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn depth(&self) -> MutexGuard<'_, Vec<During>> {
        self.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    fn happened(&mut self, seq: u64, request: usize, event: Event) {
        assert!(self.history.last().is_none_or(|(last, _, _)| *last < seq), "numbers rise");
        self.history.push((seq, request, event));
    }

    /// The number up to which nothing may be missing.
    fn must_seq(&self, crash: Crash, durability: Durability, errors: u64) -> u64 {
        let marks = &self.marks;
        match (crash, durability) {
            // A file that fails at the very end leaves what was being written again.
            (Crash::Kill, _) if !marks.is_failed && marks.errors == errors => marks.returned_seq,
            (_, Durability::Os) => 0,
            (_, Durability::Group | Durability::Strict) => marks.durable_seq,
        }
    }
}

/// Every request is in the database as the journal up to this number has it, or as the database had it before.
fn hold_against(model: &Model, before: &BTreeMap<RequestId, RequestRow>, upto: u64, tables: &Tables) {
    tables.audit();
    for (at, request) in model.requests.iter().enumerate() {
        let id = RequestId::from_slice(&request.sent.request_id).unwrap();
        let row = tables.rows.get(&id).cloned();
        let seq = row.as_ref().map_or(0, |row| row.seq);
        let upto = if before.contains_key(&id) { u64::MAX } else { upto };
        let events = model.history.iter().filter(|(seq, of, _)| *of == at && *seq <= upto);
        let events = events.map(|(_, _, event)| event.clone());
        assert_eq!(row, Bill::of(events).row(seq), "request {at} up to {upto}");
    }
    let poisoned = tables.poison.iter().filter(|id| tables.rows.contains_key(id));
    assert!(poisoned.eq(tables.quarantined.iter()), "what is refused is kept aside, and nothing else");
}
