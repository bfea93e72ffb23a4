//! `weir ready`: what a container's health check asks, where there is no other program to ask with.

use super::failure::Failure;
use super::output::Report;
use crate::config::Config;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Ask the running server whether it is ready
///
/// Exit status 0 where /readyz of `admin.listen` answers 200 within two seconds, 1 otherwise.
#[derive(Debug, clap::Args)]
pub(super) struct Ready {}

/// How long each of connecting, writing and reading may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 4096;

impl Ready {
    pub(super) fn run(self, config: &Config) -> Result<Report, Failure> {
        let Ready {} = self;
        let address = reachable(config.admin.listen);
        let answer = ask(address)
            .map_err(|error| Failure::new("not_ready", format!("no server answers at {address}: {error}")))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some("200") => Report::done(format!("The server at {address} is ready.")),
            Some(_) | None => {
                let message = format!("the server at {address} is not ready: {}", body.trim());
                Err(Failure::new("not_ready", message))
            }
        }
    }
}

/// Where a server that listens on every address is found on this machine.
pub(super) fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    listen
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
