//! What the running process says of itself: its `/metrics`, and the text format that they are in.
//!
//! The format: <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: f64,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples(pub(super) Vec<Sample>);

/// How long connecting, asking and reading may take together.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The most that is read of an answer; that of a full catalogue takes a tenth of it.
const ANSWER_MAX_BYTES: u64 = 64 << 20;

/// Asks the process whose operators' address this is.
pub(super) async fn scrape(admin: SocketAddr) -> io::Result<Samples> {
    let answer = tokio::time::timeout(ANSWER_MAX, ask(admin)).await??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => {
            Samples::parse(body).map_err(|line| io::Error::other(format!("not a line of metrics: {line:?}")))
        }
        Some(_) | None => Err(io::Error::other("it has no metrics")),
    }
}

async fn ask(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    // In this version of the protocol the end of the connection is the end of the answer.
    let question = format!("GET /metrics HTTP/1.0\r\nHost: {admin}\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}

impl Samples {
    /// Reads the text. `Err` has the first line that is none.
    pub(super) fn parse(text: &str) -> Result<Samples, String> {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        lines.map(|line| sample(line).ok_or_else(|| line.to_owned())).collect::<Result<_, _>>().map(Samples)
    }

    /// Those of this name.
    pub(super) fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// Their sum, where `is_meant`.
    pub(super) fn sum(&self, name: &str, is_meant: impl Fn(&Sample) -> bool) -> f64 {
        self.of(name).filter(|sample| is_meant(sample)).fold(0.0, |sum, sample| sum + sample.value)
    }
}

impl Sample {
    /// The value of a label, nothing where there is none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside.trim_start();
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once('=')?;
            let (value, after) = quoted(after.trim_start())?;
            labels.push((label.trim().to_owned(), value));
            let after = after.trim_start();
            rest = after.strip_prefix(',').unwrap_or(after).trim_start();
        }
        rest = rest.strip_prefix('}')?;
    }
    // A timestamp may follow.
    let value = match rest.split_ascii_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// The text between the quotes at the beginning, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let (mut value, mut escaped) = (String::new(), false);
    for (at, character) in inside.char_indices() {
        match (escaped, character) {
            (true, 'n') => value.push('\n'),
            (true, other) => value.push(other),
            (false, '\\') => {}
            (false, '"') => return Some((value, &inside[at + 1..])),
            (false, other) => value.push(other),
        }
        escaped = !escaped && character == '\\';
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_is_read_with_its_escapes_and_a_line_that_is_none_is_told() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"\\\\\\n}\"} 2.5 1700000000\nb 3\nc_bucket{le=\"+Inf\"} +Inf\n\nd{} 0\n";
        let samples = Samples::parse(text).unwrap();
        assert_eq!(samples.0.len(), 4);
        assert_eq!((samples.0[0].label("x"), samples.0[0].label("y")), ("1", "q\"\\\n}"));
        assert_eq!(samples.0[0].value, 2.5);
        assert_eq!(samples.sum("b", |_| true), 3.0);
        assert_eq!(samples.0[2].value, f64::INFINITY);
        for wrong in ["a", "a{x=1} 2", "a{x=\"1} 2", "a{x=\"1\"", "a b", "{x=\"1\"} 2"] {
            assert_eq!(Samples::parse(wrong), Err(wrong.to_owned()));
        }
    }
}
