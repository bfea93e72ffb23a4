//! Stops in the midst of an upgrade, as a service manager, a terminal or a person sends them.

use super::{BRIEF, HANGS, gateway, hanging, put, replaceable};
use crate::support::gateway::{hello_stream, lives, parent};
use crate::support::upstream::{Gate, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Upstream, number, signal, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// It hears no SIGTERM, as a new process does not before it serves.
const IS_DEAF: &str = "#!/bin/sh\ntrap '' TERM\necho $$ > hanging\nexec sleep 60\n";
/// What a process logs some milliseconds before it can be told to go.
const OPEN: &str = "the books are open";
/// What a process logs when it has handed over.
const SERVES: &str = "another process serves from now on";

#[track_caller]
fn no_process_is_left(gateway: &Gateway) {
    wait_for("every process to be gone", BRIEF, || gateway.processes().is_empty().then_some(()));
}

#[test]
fn a_stop_of_every_process_of_an_upgrade_leaves_none_although_the_new_one_does_not_hear_it() {
    let upstream = Upstream::start();
    let mut gateway = replaceable(&upstream, "");
    put(&gateway, IS_DEAF);
    signal("USR2", gateway.process_id());
    let new = hanging(&gateway);
    let starter = parent(new);
    assert_ne!(starter, gateway.process_id());
    signal("TERM", new);
    signal("TERM", starter);
    wait_for("the starter to be gone", BRIEF, || (!lives(starter)).then_some(()));
    assert!(lives(new));
    let begun = Instant::now();
    assert!(gateway.stop().unwrap().success());
    no_process_is_left(&gateway);
    assert!(begun.elapsed() < BRIEF, "{:?}", begun.elapsed());
}

#[test]
fn a_new_process_that_hangs_is_ended_although_its_starter_was_killed() {
    let upstream = Upstream::start();
    let gateway = replaceable(&upstream, "upgrade_timeout_ms = 1500");
    put(&gateway, HANGS);
    let mut asking = gateway.cli.clone();
    asking.program(Path::new(env!("CARGO_BIN_EXE_weir")));
    let failed = std::thread::spawn(move || asking.fails(1, &["upgrade"]));
    let new = hanging(&gateway);
    signal("KILL", parent(new));
    let failed = failed.join().unwrap();
    assert_eq!(failed["code"], "upgrade_failed", "{failed}");
    assert!(!lives(new), "{failed}");
    assert_eq!(gateway.processes(), [gateway.process_id()]);
    gateway.hello().ok();
}

#[test]
fn a_stop_at_the_moment_of_taking_over_cuts_no_stream_and_is_no_failure() {
    let upstream = Upstream::start();
    let mut gateway = gateway(&upstream, "");
    assert!(gateway.stop().unwrap().success());
    let stops = number("WEIR_STOPS", 10);
    let mut taken_over = 0;
    for round in 0..stops {
        // The moment moves, from where the new process may be called off to where it serves.
        taken_over +=
            u64::from(stop_after(Duration::from_micros(round * 60_000 / stops), &mut gateway, &upstream));
    }
    eprintln!("{stops} stops at the moment of taking over, in {taken_over} of them the new process served");
    let rows = gateway.rows_when(usize::try_from(stops).unwrap());
    assert!(rows.iter().all(|row| row["outcome"] == "completed"), "{rows:?}");
    assert!(rows.iter().all(|row| row["usage"] == json!({"input": 9, "output": 2})), "{rows:?}");
    gateway.serve();
}

/// Stops the one process so long after the other has opened its books, with a stream under way: whether the other had taken over.
fn stop_after(time: Duration, gateway: &mut Gateway, upstream: &Upstream) -> bool {
    let gate = Gate::new();
    upstream.when("gated", gated(&gate));
    gateway.serve();
    let mut body = hello_stream();
    body["messages"][0]["content"] = json!("gated");
    let (connection, head) = gateway.begin(&body);
    let times = |text: &str| gateway.log().matches(text).count();
    let (opened, passed) = (times(OPEN), times(SERVES));
    let old = gateway.process_id();
    signal("USR2", old);
    let end = Instant::now() + BRIEF;
    while times(OPEN) == opened {
        assert!(Instant::now() < end, "no new process opens its books");
    }
    let opens = Instant::now();
    while opens.elapsed() < time {}
    // Not by a program, which would take longer than all of this.
    tell(old, Signal::TERM).unwrap();
    wait_for("the new process to end", BRIEF, || {
        let others: Vec<u32> = gateway.processes().into_iter().filter(|id| *id != old).collect();
        if times(SERVES) > passed {
            // The stop may have come behind the upgrade. Whoever has ended by now needs not hear of it.
            for id in &others {
                let _ = tell(*id, Signal::TERM);
            }
        }
        others.is_empty().then_some(())
    });
    wait_for("the listeners to close", BRIEF, || {
        TcpStream::connect(gateway.address()).is_err().then_some(())
    });
    let has_taken_over = times(SERVES) > passed;
    gate.open();
    let reply = connection.finish(head).unwrap();
    gateway.note(&reply);
    assert!(reply.done() && reply.said() == "w0 w1 ", "after {time:?}: {}", reply.text());
    let status = gateway.ended(BRIEF);
    assert!(status.success(), "after {time:?}: {status}\n{}", gateway.log());
    no_process_is_left(gateway);
    has_taken_over
}

fn tell(process: u32, what: Signal) -> rustix::io::Result<()> {
    kill_process(Pid::from_raw(i32::try_from(process).unwrap()).unwrap(), what)
}

fn gated(gate: &Arc<Gate>) -> Answer {
    Answer::stream()
        .event(&chunk("w0 "))
        .gate(gate)
        .event(&chunk("w1 "))
        .event(&last_chunk())
        .event(&usage_chunk(&usage(9, 2)))
        .done()
}
