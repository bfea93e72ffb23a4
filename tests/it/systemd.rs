//! The service: its unit as systemd itself reads and rates it, and what the process tells a service manager.

use crate::crash::WriteLock;
use crate::support::gateway::{hello_stream, lives, parent};
use crate::support::upstream::{Gate, chunk, last_chunk};
use crate::support::{Answer, Gateway, Upstream, ms, signal, wait_for};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// What is rated worse is refused.
const SCORE_MAX: f64 = 2.0;

fn systemd() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .env("SYSTEMD_LOG_LEVEL", "notice")
        .output()
        .expect("systemd-analyze runs: `make test` installs it")
}

/// The unit with its drop-ins, its program at a path that is there.
fn installed(directory: &Path, drop_ins: &[&str]) -> PathBuf {
    let program = env!("CARGO_BIN_EXE_weir");
    let unit = fs::read_to_string(systemd().join("weir.service")).unwrap();
    let more: Vec<String> = drop_ins
        .iter()
        .map(|name| fs::read_to_string(systemd().join("weir.service.d").join(name)).unwrap())
        .collect();
    let text = [&[unit.replace("/usr/bin/weir", program)], more.as_slice()].concat().join("\n");
    let path = directory.join("weir.service");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_rates_it_well() {
    for drop_ins in [&[][..], &["port-443.conf", "credentials.conf"][..]] {
        let directory = tempfile::tempdir().unwrap();
        let unit = installed(directory.path(), drop_ins);
        let verified = analyze(&["verify", "--man=no"], &unit);
        let said = crate::support::cli::shown(&verified);
        assert!(verified.status.success() && verified.stderr.is_empty(), "{drop_ins:?}: {said}");
        let rated = String::from_utf8(analyze(&["security", "--offline=true"], &unit).stdout).unwrap();
        let last = rated.lines().rfind(|line| line.contains("exposure level")).expect("a score");
        let score: f64 = last.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        eprintln!("{drop_ins:?}: {last}");
        assert!(score <= SCORE_MAX, "{drop_ins:?}: {rated}");
    }
}

#[test]
fn a_stop_by_systemd_waits_longer_than_the_process_may_drain() {
    let unit = fs::read_to_string(systemd().join("weir.service")).unwrap();
    let seconds = |key: &str| -> u64 {
        unit.lines().find_map(|line| line.strip_prefix(key)).expect(key).parse().expect("seconds")
    };
    let server = weir::config::Config::default().server;
    let most = (server.stop_delay + server.drain_timeout).as_secs() + 30;
    assert!(seconds("TimeoutStopSec=") >= most, "the defaults may take {most} s");
    assert!(seconds("WatchdogSec=") >= 30);
}

#[test]
fn a_wrong_configuration_fails_the_server_itself_and_a_reload_reaches_it_before_the_check() {
    let unit = fs::read_to_string(systemd().join("weir.service")).unwrap();
    let all = |key: &str| -> Vec<&str> { unit.lines().filter_map(|line| line.strip_prefix(key)).collect() };
    assert_eq!(all("RestartPreventExitStatus="), ["2 3"], "of the main process alone");
    for before in all("ExecStartPre=") {
        assert!(before.starts_with('-'), "its exit status would be tried again for ever: {before}");
    }
    let with_credentials = fs::read_to_string(systemd().join("weir.service.d/credentials.conf")).unwrap();
    for text in [unit.as_str(), with_credentials.as_str()] {
        let lines = text.lines().filter_map(|line| line.strip_prefix("ExecReload="));
        let reload: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        assert!(
            reload[0].ends_with("kill -HUP $MAINPID"),
            "the metric of a refused reload is the server's: {reload:?}"
        );
        assert!(reload[1].ends_with(" check") && reload.len() == 2, "the operator is told: {reload:?}");
    }
}

/// The other end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    /// A gateway that is told of it when it starts the next time.
    fn of(gateway: &mut Gateway) -> Manager {
        assert!(gateway.stop().unwrap().success());
        let path = gateway.directory().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        gateway.cli.set("NOTIFY_SOCKET", path.to_str().unwrap());
        gateway.cli.set("WATCHDOG_USEC", "2000000");
        Manager { socket, heard: Vec::new() }
    }

    /// Waits for a message with this line, and hands everything on that was heard before it.
    #[track_caller]
    fn hear(&mut self, line: &str) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            self.take(ms(100));
            if let Some(at) = self.heard.iter().position(|message| message.lines().any(|have| have == line)) {
                return self.heard.drain(..=at).collect();
            }
        }
        panic!("{line} was not said: {:?}", self.heard);
    }

    /// What is said within this time.
    fn listen(&mut self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.take(ms(50));
        }
        std::mem::take(&mut self.heard)
    }

    fn take(&mut self, most: Duration) {
        self.socket.set_read_timeout(Some(most)).unwrap();
        let mut bytes = [0; 4096];
        if let Ok(length) = self.socket.recv(&mut bytes) {
            self.heard.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
        }
    }
}

fn feeds(messages: &[String]) -> usize {
    messages.iter().filter(|message| message.trim() == "WATCHDOG=1").count()
}

#[test]
fn a_service_manager_hears_ready_the_watchdog_and_the_stop() {
    let upstream = Upstream::start();
    upstream.always(Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .server("drain_timeout_ms = 500")
        .start();
    let mut manager = Manager::of(&mut gateway);
    gateway.serve();
    let before = manager.hear("READY=1");
    assert!(!before.concat().contains("STOPPING"), "{before:?}");
    // The writer turns although it has nothing to do, and although the database is away.
    assert!(feeds(&manager.listen(Duration::from_secs(4))) >= 2);
    let (connection, _head) = gateway.begin(&hello_stream());
    let lock = WriteLock::take(&gateway);
    assert!(feeds(&manager.listen(Duration::from_secs(4))) >= 2);
    lock.release();
    assert!(gateway.stop().unwrap().success());
    drop(connection);
    let last = manager.hear("STOPPING=1").pop().unwrap();
    assert!(last.contains("STATUS=stopping; 1 requests under way"), "{last}");
    let patience = last.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).expect("patience");
    assert!(patience.parse::<u64>().unwrap() > 30_000_000, "for the drain and the books: {last}");
}

#[test]
fn a_process_whose_writer_hangs_is_not_fed() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    let mut manager = Manager::of(&mut gateway);
    gateway.serve();
    manager.hear("READY=1");
    signal("STOP", gateway.process_id());
    manager.listen(ms(500));
    assert_eq!(feeds(&manager.listen(Duration::from_secs(3))), 0);
    signal("CONT", gateway.process_id());
    manager.hear("WATCHDOG=1");
}

#[test]
fn a_service_manager_hears_of_a_new_main_process_from_the_old_one_and_of_its_state_from_the_new_one() {
    let upstream = Upstream::start();
    upstream.when("endless", Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .server("drain_timeout_ms = 200")
        .start();
    let mut manager = Manager::of(&mut gateway);
    gateway.serve();
    manager.hear("READY=1");
    let mut body = hello_stream();
    body["messages"][0]["content"] = "endless".into();
    let (connection, head) = gateway.begin(&body);
    let new = gateway.upgrade();
    // What is not a child of the service manager, or to be, is killed by it where it should be stopped.
    assert!(lives(gateway.first_process_id()));
    assert_ne!(parent(new), gateway.first_process_id());
    let said = [manager.hear(&format!("MAINPID={new}")), manager.listen(Duration::from_secs(3))].concat();
    assert!(!said.concat().contains("STOPPING"), "{said:?}");
    assert!(feeds(&said) >= 1, "the new one feeds the watchdog: {said:?}");
    gateway.hello().ok();
    signal("TERM", gateway.first_process_id());
    gateway.note(&connection.finish(head).unwrap());
}

#[test]
fn a_stop_behind_an_upgrade_ends_the_main_process_last_since_its_end_hurries_the_others() {
    let upstream = Upstream::start();
    let gate = Gate::new();
    upstream.when("gated", Answer::stream().event(&chunk("Hello")).gate(&gate).event(&last_chunk()).done());
    let mut gateway = Gateway::before(&upstream);
    let mut manager = Manager::of(&mut gateway);
    gateway.serve();
    manager.hear("READY=1");
    let mut body = hello_stream();
    body["messages"][0]["content"] = "gated".into();
    let (connection, head) = gateway.begin(&body);
    let new = gateway.upgrade();
    manager.hear(&format!("MAINPID={new}"));
    signal("TERM", new);
    signal("TERM", gateway.first_process_id());
    manager.hear("STOPPING=1");
    manager.listen(Duration::from_secs(2));
    assert!(lives(new), "the service manager would take the service for ended");
    gate.open();
    let reply = connection.finish(head).unwrap();
    gateway.note(&reply);
    assert!(reply.done(), "{}", reply.text());
    assert!(gateway.first_ended(Duration::from_secs(10)).success());
    wait_for("the new process to end", Duration::from_secs(10), || (!lives(new)).then_some(()));
    gateway.forget_upgrades();
    gateway.serve();
    gateway.hello().ok();
}

#[test]
fn a_refused_reload_stands_in_the_status_until_a_good_one() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    let mut manager = Manager::of(&mut gateway);
    gateway.serve();
    assert!(manager.hear("READY=1").pop().unwrap().contains("STATUS=serving\n"));
    let path = gateway.directory().join("weir.toml");
    let good = fs::read_to_string(&path).unwrap();
    let mut reload = |text: &str| {
        fs::write(&path, text).unwrap();
        signal("HUP", gateway.process_id());
        manager.hear("RELOADING=1");
        let told = manager.hear("READY=1").pop().unwrap();
        told.lines().find_map(|line| line.strip_prefix("STATUS=")).expect("a status").to_owned()
    };
    assert!(reload(&good.replace("threads", "treads")).contains("the last reload was refused"));
    assert!(reload(&good.replace("threads = 1", "threads = 2")).contains("wait for a restart"));
    assert_eq!(reload(&good), "serving");
    gateway.hello().ok();
}
