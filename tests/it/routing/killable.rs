//! A provider that can be killed under load.

use crate::support::upstream::{chat, usage};
use crate::support::{Connection, ms};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// A provider in a process of its own, as far as its end goes: when it is killed, its port and all its connections close at once.
pub(super) struct Killable {
    address: SocketAddr,
    is_dead: Arc<AtomicBool>,
    listening: Option<thread::JoinHandle<()>>,
}

impl Killable {
    /// Starts one.
    pub(super) fn start() -> Killable {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let is_dead = Arc::new(AtomicBool::new(false));
        let dead = Arc::clone(&is_dead);
        let listening = thread::spawn(move || {
            while !dead.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let dead = Arc::clone(&dead);
                        thread::spawn(move || serve(stream, address, &dead));
                    }
                    Err(_) => thread::sleep(ms(1)),
                }
            }
        });
        Killable { address, is_dead, listening: Some(listening) }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it.
    pub(super) fn kill(&mut self) {
        self.is_dead.store(true, Ordering::SeqCst);
        if let Some(listening) = self.listening.take() {
            listening.join().unwrap();
        }
    }
}

/// Answers requests of one connection until the provider is killed.
fn serve(stream: TcpStream, address: SocketAddr, is_dead: &AtomicBool) {
    stream.set_nonblocking(false).unwrap();
    let watched = stream.try_clone().unwrap();
    let mut connection = Connection::over(stream, address);
    let body = chat("alive", &usage(5, 5)).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    loop {
        // Looks for the next request without being stuck in the look.
        watched.set_nonblocking(true).unwrap();
        while watched.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            if is_dead.load(Ordering::SeqCst) {
                return connection.reset();
            }
            thread::sleep(ms(1));
        }
        watched.set_nonblocking(false).unwrap();
        let Ok(Some(_)) = connection.request() else { return };
        thread::sleep(ms(5));
        if is_dead.load(Ordering::SeqCst) {
            return connection.reset();
        }
        if connection.send(&[head.as_bytes(), body.as_bytes()].concat()).is_err() {
            return;
        }
    }
}
