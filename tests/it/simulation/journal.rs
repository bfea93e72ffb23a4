//! The journal by itself: torn at every byte, bent at every byte, failing, full, crowded, and under many threads.

use super::bill::{row_of, settle_of};
use super::disk::{Crash, During, Image, SimDisk};
use super::rng::Rng;

use std::sync::{Arc, Mutex};
use weir::ledger::journal::{
    Directory, Durability, Journal, Progress, Record, Reservation, ScanError, Sent, Settings, Settle, scan,
};

const SEGMENT: u64 = 16 * 1024;
const HEAD: usize = 32;
const FRAME_HEAD: usize = 16;

fn settings(segments: u64) -> Settings {
    Settings { durability: Durability::Group, segment_bytes: SEGMENT, max_bytes: SEGMENT * segments }
}

fn journal(segments: u64) -> (SimDisk, Journal) {
    let disk = SimDisk::new(Rng::new(1));
    let journal = Journal::without_threads(disk.clone(), settings(segments)).unwrap();
    (disk, journal)
}

fn sent(number: u8) -> Sent {
    Sent {
        request_id: [number; 16],
        account: [1; 16],
        key: [2; 16],
        created_at: 5,
        client_request_id: Some("c".repeat(64)),
        model: "model".to_owned(),
        provider: "provider".to_owned(),
        upstream_model: "upstream".to_owned(),
        service_tier: None,
        stream: true,
        price_version: 1,
        input_tokens: 7,
        input_price: 3,
        output_price: 5,
    }
}

fn settlement(number: u8) -> Settle {
    settle_of(&row_of(&sent(number), 0, 70, 0))
}

fn progress(number: u8, output_tokens: u64) -> Progress {
    Progress { request_id: [number; 16], input_tokens: 7, output_tokens }
}

/// A request from its beginning to its end.
fn serve(journal: &Journal, number: u8) -> u64 {
    let room = journal.reserve().expect("room");
    journal.sent(&room, &sent(number));
    journal.settle(&room, &settlement(number), |_| {})
}

/// Requests until this many segments are in use.
fn fill(journal: &Journal, disk: &SimDisk, segments: usize) -> u64 {
    let used = || disk.now().0.values().filter(|bytes| bytes[HEAD..].iter().any(|byte| *byte != 0)).count();
    let mut seq = 0;
    while used() < segments {
        seq = serve(journal, 200);
        journal.sync_once();
        journal.keep_once().unwrap();
    }
    seq
}

/// Where each record of a segment begins and ends, with its number.
fn frames(bytes: &[u8]) -> Vec<(usize, usize, u64)> {
    let mut frames = Vec::new();
    let mut at = HEAD;
    loop {
        let length = usize::try_from(u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())).unwrap();
        if length == 0 {
            return frames;
        }
        let end = at + FRAME_HEAD + length;
        frames.push((at, end, u64::from_le_bytes(*bytes[at + 8..].first_chunk().unwrap())));
        at = end;
    }
}

fn only_file(image: &Image) -> (String, Vec<u8>) {
    let mut used = image.0.iter().filter(|(_, bytes)| bytes[HEAD..].iter().any(|byte| *byte != 0));
    let (name, bytes) = used.next().unwrap();
    assert!(used.next().is_none(), "one segment");
    (name.clone(), bytes.clone())
}

#[test]
fn a_segment_torn_at_any_byte_gives_back_every_record_that_was_whole() {
    let (disk, journal) = journal(8);
    for number in 0..6 {
        serve(&journal, number);
        journal.sync_once();
    }
    let image = disk.now();
    let (name, bytes) = only_file(&image);
    let whole = scan(&image).unwrap().records().collect::<Vec<_>>();
    let frames = frames(&bytes);
    assert_eq!(frames.len(), whole.len());
    for at in HEAD..=frames.last().unwrap().1 {
        let mut torn = bytes.clone();
        torn[at..].fill(0);
        let written = torn.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let mut image = image.clone();
        image.0.insert(name.clone(), torn);
        let scanned = scan(&image).unwrap();
        let count = frames.iter().filter(|(_, end, _)| *end <= at).count();
        assert_eq!(scanned.records().collect::<Vec<_>>(), whole[..count], "torn at {at}");
        let end = count.checked_sub(1).map_or(HEAD, |last| frames[last].1);
        assert_eq!(scanned.torn_bytes, u64::try_from(written.saturating_sub(end)).unwrap(), "torn at {at}");
    }
}

#[test]
fn a_bit_that_flips_is_damage_where_the_disk_had_it_and_a_torn_tail_behind_and_never_passed_over() {
    let (disk, journal) = journal(8);
    for number in 0..4 {
        serve(&journal, number);
        journal.sync_once();
    }
    // Behind the last mark.
    serve(&journal, 4);
    serve(&journal, 5);
    let image = disk.now();
    let (name, bytes) = only_file(&image);
    let whole = scan(&image).unwrap().records().collect::<Vec<_>>();
    let marks: Vec<(u64, u64)> = whole
        .iter()
        .filter_map(
            |(seq, record)| if let Record::Synced(upto) = record { Some((*seq, *upto)) } else { None },
        )
        .collect();
    assert!(marks.len() > 2);
    for (start, end, seq) in frames(&bytes) {
        for at in start..end {
            let mut image = image.clone();
            image.0.get_mut(&name).unwrap()[at] ^= 1 << (at % 8);
            let is_known = marks.iter().any(|(mark, upto)| *mark != seq && *upto >= seq);
            match scan(&image) {
                Err(ScanError::Damaged { file, offset, .. }) => {
                    assert!(is_known, "byte {at} of record {seq}");
                    assert_eq!((file, offset), (name.clone(), u64::try_from(start).unwrap()));
                }
                Ok(scanned) => {
                    assert!(!is_known, "byte {at} of record {seq}");
                    let kept = whole.iter().position(|(number, _)| *number == seq).unwrap();
                    assert_eq!(scanned.records().collect::<Vec<_>>(), whole[..kept]);
                    assert!(scanned.torn_bytes > 0);
                }
                Err(error @ ScanError::Io(_)) => panic!("{error}"),
            }
        }
    }
    for at in 0..HEAD {
        let mut image = image.clone();
        image.0.get_mut(&name).unwrap()[at] ^= 1 << (at % 8);
        assert!(matches!(scan(&image), Err(ScanError::Damaged { offset: 0, .. })), "byte {at} of the head");
    }
}

#[test]
fn damage_in_the_first_or_a_middle_segment_names_it() {
    let (disk, journal) = journal(8);
    fill(&journal, &disk, 3);
    let image = disk.now();
    for file in image.0.keys().take(2) {
        for (start, end, _) in frames(&image.0[file]).into_iter().step_by(7) {
            let mut image = image.clone();
            image.0.get_mut(file).unwrap()[(start + end) / 2] ^= 4;
            let error = scan(&image).unwrap_err().to_string();
            assert!(error.contains(file.as_str()) && error.contains(&format!("at byte {start}:")), "{error}");
        }
    }
    // A segment that is gone is damage, too.
    let mut image = image;
    let middle = image.0.keys().nth(1).unwrap().clone();
    image.0.remove(&middle);
    assert!(matches!(scan(&image), Err(ScanError::Damaged { .. })));
    // The first one, where everything before it was removed.
    let seq = fill(&journal, &disk, 4);
    journal.applied(seq - 4);
    journal.keep_once().unwrap();
    let mut image = disk.now();
    let first = image.0.keys().next().unwrap().clone();
    assert_ne!(first, "0000000000000001.journal", "removed");
    image.0.get_mut(&first).unwrap()[HEAD + FRAME_HEAD] ^= 1;
    let error = scan(&image).unwrap_err().to_string();
    assert!(error.contains(&first) && error.contains("at byte 32:"), "{error}");
}

#[test]
fn a_file_that_failed_is_left_and_what_it_may_not_have_is_written_to_another() {
    for is_write in [true, false] {
        let (disk, journal) = journal(8);
        let rooms: Vec<Reservation> = (0..2).map(|_| journal.reserve().unwrap()).collect();
        journal.sent(&rooms[0], &sent(0));
        assert!(journal.sync_once());
        journal.sent(&rooms[1], &sent(1));
        disk.with_faults(|faults| match is_write {
            true => faults.write_error_in = Some(0),
            false => faults.sync_error_in = Some(0),
        });
        journal.settle(&rooms[0], &settlement(0), |_| {});
        journal.sync_once();
        assert_eq!(disk.errors(), 1);
        assert!(!journal.stats().is_failed, "another segment was ready");
        let last = journal.settle(&rooms[1], &settlement(1), |_| {});
        assert!(journal.sync_once());
        assert_eq!(*journal.durable().borrow(), last);
        disk.crash(Crash::PowerCut);
        let scanned = scan(&disk.left().1).unwrap();
        let settled = scanned.records().filter(|(_, record)| matches!(record, Record::Settle(_))).count();
        assert_eq!((settled, scanned.last_seq().unwrap()), (2, last));
    }
}

#[test]
fn a_failure_with_more_to_write_again_than_a_segment_holds_is_repaired() {
    let (disk, journal) = journal(16);
    let room = journal.reserve().unwrap();
    // Nothing of it is waited for.
    while disk.now().0.len() < 6 {
        serve(&journal, 1);
        journal.keep_once().unwrap();
    }
    disk.with_faults(|faults| faults.sync_error_in = Some(0));
    journal.sync_once();
    assert!(journal.stats().is_failed && journal.reserve().is_none());
    let seq = journal.settle(&room, &settlement(9), |_| {});
    journal.keep_once().unwrap();
    assert!(!journal.stats().is_failed);
    assert!(journal.sync_once());
    assert_eq!(*journal.durable().borrow(), seq);
    disk.crash(Crash::PowerCut);
    assert_eq!(scan(&disk.left().1).unwrap().last_seq().unwrap(), seq);
}

#[test]
fn a_file_that_fills_up_while_it_is_waited_for_is_waited_for_again() {
    let (disk, journal) = journal(16);
    serve(&journal, 0);
    let (writer, once) = (journal.clone(), Mutex::new(true));
    disk.set_hook(Some(Arc::new(move |during| {
        if during == During::Sync && std::mem::take(&mut *once.lock().unwrap()) {
            // Into the next segment.
            while let Some(room) = writer.reserve() {
                writer.settle(&room, &settlement(1), |_| {});
            }
        }
    })));
    journal.sync_once();
    assert!(disk.now().0["0000000000000002.journal"][HEAD..].iter().any(|byte| *byte != 0), "it filled up");
    journal.sync_once();
    let durable = *journal.durable().borrow();
    assert_eq!(durable, journal.stats().appended_seq);
    disk.crash(Crash::PowerCut);
    assert_eq!(scan(&disk.left().1).unwrap().last_seq().unwrap(), durable);
}

#[test]
fn nothing_counts_as_on_the_disk_whose_file_failed_while_it_was_waited_for() {
    for seed in 0..40 {
        let disk = SimDisk::new(Rng::new(seed));
        let journal = Journal::without_threads(disk.clone(), settings(16)).unwrap();
        let room = journal.reserve().unwrap();
        (0..8).for_each(|number| _ = serve(&journal, number));
        let (failing, writer, once) = (disk.clone(), journal.clone(), Mutex::new(Some(room)));
        disk.set_hook(Some(Arc::new(move |_| {
            if let Some(room) = once.lock().unwrap().take() {
                failing.with_faults(|faults| faults.write_error_in = Some(0));
                writer.settle(&room, &settlement(9), |_| {});
            }
        })));
        journal.sync_once();
        let durable = *journal.durable().borrow();
        assert!(!journal.stats().is_failed, "the other file is as good as before");
        disk.crash(Crash::PowerCut);
        let records = scan(&disk.left().1).unwrap().records().collect::<Vec<_>>();
        assert!(
            records.last().map_or(0, |(seq, _)| *seq) >= durable,
            "{durable} of {} are there",
            records.len()
        );
    }
}

#[test]
fn what_a_long_request_needs_is_carried_forward_and_on_the_disk_before_its_segment_goes() {
    for seed in 0..40 {
        let disk = SimDisk::new(Rng::new(seed));
        let journal = Journal::without_threads(disk.clone(), settings(16)).unwrap();
        let room = journal.reserve().unwrap();
        journal.sent(&room, &sent(0));
        journal.progress(progress(0, 11)).unwrap();
        let seq = fill(&journal, &disk, 5);
        assert!(journal.sync_once() || *journal.durable().borrow() == seq);
        journal.applied(seq);
        journal.keep_once().unwrap();
        let left = disk.now();
        assert!(!left.0.contains_key("0000000000000001.journal"), "{:?}", left.0.keys());
        disk.crash(Crash::PowerCut);
        let records = scan(&disk.left().1).unwrap().records().collect::<Vec<_>>();
        let of_it = |record: &Record| match record {
            Record::Sent(sent) => sent.request_id == [0; 16],
            Record::Progress(progress) => *progress == self::progress(0, 11),
            Record::Failed(_) | Record::Settle(_) | Record::Synced(_) => false,
        };
        let kept = records.iter().filter(|(_, record)| of_it(record)).count();
        assert_eq!(kept, 2, "seed {seed}: it was sent, and how far it was");
    }
}

#[test]
fn a_request_that_ends_while_it_is_carried_forward_is_not_open_again() {
    let (disk, journal) = journal(16);
    let room = Mutex::new(Some(journal.reserve().unwrap()));
    journal.sent(room.lock().unwrap().as_ref().unwrap(), &sent(0));
    let seq = fill(&journal, &disk, 5);
    journal.applied(seq);
    let writer = journal.clone();
    disk.set_hook(Some(Arc::new(move |_| {
        if let Some(room) = room.lock().unwrap().take() {
            writer.settle(&room, &settlement(0), |_| {});
        }
    })));
    journal.keep_once().unwrap();
    assert_eq!(journal.stats().open_requests, 0);
    let records = scan(&disk.now()).unwrap().records().collect::<Vec<_>>();
    let last = records.iter().rev().find_map(|(_, record)| match record {
        Record::Sent(sent) => (sent.request_id == [0; 16]).then_some("sent"),
        Record::Settle(settle) => (settle.request_id == [0; 16]).then_some("settled"),
        Record::Failed(_) | Record::Progress(_) | Record::Synced(_) => None,
    });
    assert_eq!(last, Some("settled"));
}

#[test]
fn a_full_disk_stops_admission_and_lets_everything_that_was_admitted_settle() {
    let (disk, journal) = journal(64);
    disk.with_faults(|faults| faults.has_no_space = true);
    let mut rooms = Vec::new();
    while let Some(room) = journal.reserve() {
        rooms.push(room);
    }
    assert!(!rooms.is_empty() && journal.keep_once().is_err());
    for (number, room) in (0..).zip(&rooms) {
        (0..4).for_each(|_| _ = journal.sent(room, &sent(number)));
    }
    let mut noted = 0;
    while journal.progress(progress(0, noted)).is_some() {
        noted += 1;
        assert!(noted < 10_000, "notes of progress take no room from settlements");
    }
    for (number, room) in (0..).zip(rooms) {
        let seq = journal.settle(&room, &settlement(number), |_| {});
        assert_eq!(scan(&disk.now()).unwrap().last_seq().unwrap(), seq);
    }
    assert!(!journal.stats().is_failed);
    disk.with_faults(|faults| faults.has_no_space = false);
    journal.keep_once().unwrap();
    assert!(journal.reserve().is_some(), "room again");
}

#[test]
fn numbers_have_no_gap_and_a_queue_has_their_order_under_many_threads() {
    const THREADS: u8 = 8;
    const EACH: usize = 400;
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { durability: Durability::Group, segment_bytes: 64 * 1024, max_bytes: 64 << 20 };
    let journal = Journal::start(Directory::new(directory.path()), settings).unwrap();
    let queue = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (journal, queue) = (&journal, &queue);
            scope.spawn(move || {
                for _ in 0..EACH {
                    let room = std::iter::repeat_with(|| {
                        let room = journal.reserve();
                        if room.is_none() {
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                        room
                    });
                    let room = room.flatten().next().unwrap();
                    journal.sent(&room, &sent(number));
                    journal.progress(progress(number, 1));
                    journal.settle(&room, &settlement(number), |seq| queue.lock().unwrap().push(seq));
                }
            });
        }
    });
    journal.stop();
    let queue = queue.into_inner().unwrap();
    assert!(queue.is_sorted_by(|a, b| a < b), "in the order of the numbers");
    let scanned = scan(&Directory::new(directory.path())).unwrap();
    let last = journal.stats().appended_seq;
    assert!(scanned.records().map(|(seq, _)| seq).eq(1..=last));
    assert_eq!((scanned.torn_bytes, *journal.durable().borrow()), (0, last));
    let settled = scanned.records().filter(|(_, record)| matches!(record, Record::Settle(_)));
    assert!(settled.map(|(seq, _)| seq).eq(queue), "each is where the queue has it");
}

#[test]
fn what_comes_after_a_rest_is_on_the_disk_as_soon_as_ever() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { durability: Durability::Strict, segment_bytes: 64 * 1024, max_bytes: 4 << 20 };
    let journal = Journal::start(Directory::new(directory.path()), settings).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(900));
    let begun = std::time::Instant::now();
    let seq = serve(&journal, 1);
    let mut durable = journal.durable();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { durable.wait_for(|durable| *durable >= seq).await.map(|seq| *seq) }).unwrap();
    let waited = begun.elapsed();
    assert!(waited < std::time::Duration::from_millis(700), "{waited:?}");
    journal.stop();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_the_files_hold_they_are_read_or_refused(
        noise in proptest::collection::vec((0_usize..3, 0_usize..1_600, proptest::num::u8::ANY), 0..12),
        cut in proptest::option::of((0_usize..3, 0_usize..1_600)),
        garbage in proptest::collection::vec(proptest::num::u8::ANY, 0..100),
    ) {
        let (disk, journal) = journal(8);
        for number in 0..4 {
            serve(&journal, number);
            journal.sync_once();
        }
        let mut image = disk.now();
        let records = scan(&image).unwrap().records().collect::<Vec<_>>();
        image.0.insert("9999999999999999.journal".to_owned(), garbage);
        let mut files: Vec<&mut Vec<u8>> = image.0.values_mut().collect();
        for (file, at, byte) in noise {
            let file = &mut files[file];
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        if let Some((file, length)) = cut {
            files[file].truncate(length);
        }
        if let Ok(scanned) = scan(&image) {
            proptest::prop_assert!(records.starts_with(&scanned.records().collect::<Vec<_>>()), "what is read is what was written");
        }
    }
}
