//! Sockets in the file system.

use crate::support::gateway::hello;
use crate::support::{Gateway, Request, Upstream, ms, wait_for};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// One chat over HTTP/1.1 on a new connection.
fn chat(gateway: &Gateway, path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    stream.write_all(&request.header("Connection", "close").to_bytes(gateway.address())).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_unix_socket_has_its_mode_and_one_that_a_kill_left_is_replaced() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let lines = format!("\n[unix]\nlisten = [\"{}\"]\nmode = \"0600\"\n", path.display());
    let mut gateway = builder.lines(&lines).start();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(chat(&gateway, &path).starts_with("HTTP/1.1 200"));
    gateway.row();
    gateway.kill();
    assert!(path.exists());
    gateway.serve();
    assert!(chat(&gateway, &path).starts_with("HTTP/1.1 200"));
    gateway.rows_when(2);
    // A client over the network is named in its line, one of a socket has no address.
    gateway.hello().ok();
    let told = "\"client\":\"127.0.0.1\"";
    wait_for("the line", ms(5000), || (gateway.log().matches(told).count() == 1).then_some(()));
    gateway.rows_when(3);
}
