//! Where clients and operators come in: addresses, sockets, certificates.

use super::finding::Finding;
use crate::cli::ready::reachable;
use crate::clock::UnixMicros;
use crate::config::{Config, Loaded};
use crate::relay::{CERTIFICATE_ENDS_SOON_DAYS, ServerCertificate};
use rustix::fs::{Access, access};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// For the answer of a server that runs.
const ASK_MAX: Duration = Duration::from_secs(1);
/// How a folder is made where a socket's is not there.
const NEW_FOLDER_MODE: u32 = 0o700;

/// Whether the addresses and sockets are free, or a running server's.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let plain = config.server.listen.iter().map(|address| (*address, ""));
    let tls = config.tls.listen.iter().map(|address| (*address, " for TLS"));
    let all: Vec<(SocketAddr, &str)> = plain.chain(tls).chain([(config.admin.listen, "")]).collect();
    let (admin, unix) = (config.admin.listen, config.unix.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let is_running = is_weir(admin);
        let addresses = all.into_iter().map(|(address, what)| address_of(address, what, is_running));
        let sockets = unix.listen.iter().map(|path| socket(path, unix.mode, is_running));
        addresses.chain(sockets).collect()
    });
    looked.await.unwrap_or_default()
}

/// The certificates, which are known to fit their keys.
pub(super) fn certificates(loaded: &Loaded, now: UnixMicros) -> Vec<Finding> {
    loaded.certificates().iter().map(|(name, it)| certificate(name, it, now)).collect()
}

fn certificate(name: &str, certificate: &ServerCertificate, now: UnixMicros) -> Finding {
    const WHAT: &str = "certificate";
    let days = (certificate.ends_at_s() - now.0 / 1_000_000).div_euclid(86_400);
    let hosts = match certificate.names() {
        [] => "no host: clients that look refuse it".to_owned(),
        names => names.join(", "),
    };
    let says = format!("{name}: for {hosts}; it fits its key");
    if days < 0 {
        return Finding::fails(WHAT, format!("{says}, and has expired"), "renew it, then reload the server");
    }
    let says = format!("{says}, good for {days} days");
    if days <= CERTIFICATE_ENDS_SOON_DAYS {
        return Finding::warns(WHAT, says, "renew it, then reload the server");
    }
    if certificate.names().is_empty() {
        return Finding::warns(WHAT, says, "have one made with the hosts as subject alternative names");
    }
    Finding::good(WHAT, says)
}

fn address_of(address: SocketAddr, what: &str, is_running: bool) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::good("address", format!("{address}{what} is free")),
        Err(error) if is_running && is_taken(&error, address) => Finding::good(
            "address",
            format!("{address}{what} is taken, and a weir runs with this [admin] listen"),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::warns(
            "address",
            format!("{address}{what}: {error}; whether it is free cannot be told"),
            "ports below 1024 need a capability: a service has it from the drop-in port-443.conf, this command does not",
        ),
        Err(error) => {
            Finding::fails("address", format!("{address}{what}: {error}"), "free it, or listen elsewhere")
        }
    }
}

/// Whether somebody listens there, also where this process may not.
fn is_taken(refused: &io::Error, address: SocketAddr) -> bool {
    let kind = refused.kind();
    kind == io::ErrorKind::AddrInUse
        || kind == io::ErrorKind::PermissionDenied
            && TcpStream::connect_timeout(&reachable(address), ASK_MAX).is_ok()
}

/// The file at the path, and its folder.
fn socket(path: &Path, mode: u32, is_running: bool) -> Finding {
    const WHAT: &str = "socket";
    let shown = path.display();
    let found = fs::symlink_metadata(path).ok();
    if found.as_ref().is_some_and(|found| !found.file_type().is_socket()) {
        return Finding::fails(
            WHAT,
            format!("{shown} is there, and is no socket"),
            "remove it, or listen elsewhere",
        );
    }
    let says = match UnixStream::connect(path) {
        Ok(_) if is_running => format!("{shown} is taken, and a weir runs with this [admin] listen"),
        Ok(_) => {
            return Finding::fails(
                WHAT,
                format!("somebody listens at {shown}"),
                "stop that, or listen elsewhere",
            );
        }
        Err(_) if found.is_some() => {
            format!("{shown} was left by a process that is gone; a start replaces it")
        }
        Err(_) => format!("{shown} is free"),
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    if let Err(error) = access(nearest, Access::WRITE_OK | Access::EXEC_OK) {
        return Finding::fails(
            WHAT,
            format!("no socket can be made in {}: {error}", nearest.display()),
            "run this as the user that serves; for systemd, RuntimeDirectory= makes a folder in /run",
        );
    }
    let folder_mode = fs::metadata(folder).map_or(NEW_FOLDER_MODE, |found| found.permissions().mode());
    if mode & 0o077 != 0 && folder_mode & 0o011 == 0 {
        let todo =
            format!("make {0} with the rights of a folder that others pass: chmod 755 {0}", folder.display());
        let says = format!("{says}; its mode {mode:o} lets others in, and its folder does not");
        return Finding::warns(WHAT, says, todo);
    }
    Finding::good(WHAT, says)
}

/// Whether what listens there is a weir.
fn is_weir(admin: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&admin, ASK_MAX)?;
        stream.set_read_timeout(Some(ASK_MAX))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.take(1 << 20).read_to_string(&mut text)?;
        Ok(text.contains("\nweir_ready "))
    };
    ask().unwrap_or(false)
}
