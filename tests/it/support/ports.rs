//! Ports that no two tests share, in any process: taken from below the ephemeral range, each under a locked file for as long
//! as its holder lives. Binding port 0 and letting go of it would hand the same port out twice.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::process;

const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port on loopback that stays ours until dropped.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a free one.
    pub(crate) fn take() -> Port {
        // One directory a user: another's lock files could not be opened.
        let user = fs::metadata("/proc/self").expect("/proc").uid();
        let directory = std::env::temp_dir().join(format!("weir-test-ports-{user}"));
        fs::create_dir_all(&directory).expect("a directory for the locks of ports");
        let start = u16::try_from(process::id() % 97 * 100).unwrap();
        for step in 0..COUNT {
            let number = FIRST + (start + step) % COUNT;
            let lock = File::create(directory.join(number.to_string())).expect("the lock file of a port");
            let free = lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
            if free {
                return Port { number, _lock: lock };
            }
        }
        panic!("no port is free between {FIRST} and {}", FIRST + COUNT);
    }

    /// Its address on loopback.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}
