//! A provider that remembers what it served: every answer has a number of its own, in its text and in the usage that it reports.

use crate::support::http::Connection;
use crate::support::ms;
use crate::support::upstream::{chat, chunk, last_chunk, usage_chunk};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How an answer is given, and what it reports. The first word of a prompt names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Manner {
    /// At once, with exact usage.
    Whole,
    /// Six pieces within 30 ms.
    Stream,
    /// Twenty pieces within 800 ms.
    Slow,
    /// Three hundred pieces at once, so that the journal is told how far it is, then twenty within 800 ms.
    Burst,
    /// Usage far above every estimate, three times what was asked for and more.
    Triple,
    /// Reasoning that is not part of the completion.
    Reasoning,
    /// No usage at all.
    Silent,
}

/// The quick ones first.
pub(super) const MANNERS: [Manner; 7] = [
    Manner::Whole,
    Manner::Stream,
    Manner::Triple,
    Manner::Reasoning,
    Manner::Silent,
    Manner::Slow,
    Manner::Burst,
];
/// How many of them are quick.
pub(super) const QUICK: usize = 5;

impl Manner {
    pub(super) fn name(self) -> String {
        format!("{self:?}")
    }

    pub(super) fn is_stream(self) -> bool {
        !matches!(self, Manner::Whole | Manner::Triple)
    }

    /// The pieces of the answer, and how long to wait after each.
    fn pieces(self, number: u64) -> Vec<(String, Duration)> {
        let say = |count: u32, wait: Duration| (0..count).map(move |_| (" water".to_owned(), wait));
        let first = [(format!("answer {number}."), ms(0))];
        match self {
            Manner::Slow => first.into_iter().chain(say(20, ms(40))).collect(),
            Manner::Burst => first.into_iter().chain(say(300, ms(0))).chain(say(20, ms(40))).collect(),
            Manner::Whole | Manner::Stream | Manner::Triple | Manner::Reasoning | Manner::Silent => {
                first.into_iter().chain(say(6, ms(5))).collect()
            }
        }
    }
}

/// One request that came.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) manner: Manner,
    /// The text of its answer, were it whole.
    pub(super) text: String,
}

impl Served {
    /// The usage that a whole answer reports, as the provider says it.
    fn reported(&self, number: u64) -> Value {
        // The input is the number of the answer: a row says by it what it is the bill of.
        let (input, output) = (FIRST_INPUT + number, 20 + number % 7);
        match self.manner {
            Manner::Silent => Value::Null,
            Manner::Triple => {
                json!({"prompt_tokens": input, "completion_tokens": 150, "total_tokens": input + 150})
            }
            Manner::Reasoning => json!({
                "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output + 90,
                "completion_tokens_details": {"reasoning_tokens": 90},
            }),
            Manner::Whole | Manner::Stream | Manner::Slow | Manner::Burst => {
                json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
            }
        }
    }

    /// The classes that a whole answer is billed; nothing where the gateway has to count.
    pub(super) fn billed(&self, number: u64) -> Option<Value> {
        let (input, output) = (FIRST_INPUT + number, 20 + number % 7);
        match self.manner {
            Manner::Silent => None,
            Manner::Triple => Some(json!({"input": input, "output": 150})),
            Manner::Reasoning => Some(json!({"input": input, "output": output, "reasoning": 90})),
            Manner::Whole | Manner::Stream | Manner::Slow | Manner::Burst => {
                Some(json!({"input": input, "output": output}))
            }
        }
    }
}

/// The input that the first answer reports: above what any answer is counted to have.
pub(super) const FIRST_INPUT: u64 = 10_000;

/// The number that an answer's text begins with.
pub(super) fn number_in(text: &str) -> Option<u64> {
    text.strip_prefix("answer ")?.split_once('.')?.0.parse().ok()
}

/// The provider.
#[derive(Clone, Debug)]
pub(super) struct Witness {
    pub(super) address: SocketAddr,
    served: Arc<Mutex<Vec<Served>>>,
}

impl Witness {
    pub(super) fn start() -> Witness {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port for the provider");
        let witness = Witness { address: listener.local_addr().unwrap(), served: Arc::default() };
        let of = witness.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let of = of.clone();
                thread::spawn(move || of.serve(stream));
            }
        });
        witness
    }

    /// Every request so far; the place is the number of its answer.
    pub(super) fn served(&self) -> Vec<Served> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection until the gateway leaves it, or is killed.
    fn serve(&self, stream: TcpStream) {
        let mut connection = Connection::over(stream, self.address);
        while let Ok(Some((_, body))) = connection.request() {
            let Ok(asked) = serde_json::from_slice::<Value>(&body) else {
                assert!(connection.is_closed(), "only a gateway that is killed sends a part of a request");
                return;
            };
            let prompt = asked["messages"][0]["content"].as_str().expect("a prompt");
            let word = prompt.split(' ').next().unwrap_or_default();
            let manner = *MANNERS.iter().find(|manner| manner.name() == word).expect("a manner");
            let (number, served, pieces) = {
                let mut all = self.lock();
                let number = all.len() as u64;
                let pieces = manner.pieces(number);
                let text = pieces.iter().map(|(text, _)| text.as_str()).collect();
                let served = Served { manner, text };
                all.push(served.clone());
                (number, served, pieces)
            };
            let usage = served.reported(number);
            let answered = match manner.is_stream() {
                true => stream_answer(&mut connection, &pieces, &usage),
                false => whole_answer(&mut connection, &served.text, &usage),
            };
            if answered.is_err() {
                return;
            }
        }
    }
}

fn whole_answer(connection: &mut Connection, text: &str, usage: &Value) -> std::io::Result<()> {
    let body = chat(text, usage).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
    connection.send(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())
}

fn stream_answer(
    connection: &mut Connection,
    pieces: &[(String, Duration)],
    usage: &Value,
) -> std::io::Result<()> {
    let framed = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8);
    connection
        .send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for (text, wait) in pieces {
        connection.send(framed(&chunk(text).to_string()).as_bytes())?;
        thread::sleep(*wait);
    }
    let mut end = framed(&last_chunk().to_string());
    if !usage.is_null() {
        end.push_str(&framed(&usage_chunk(usage).to_string()));
    }
    end.push_str(&framed("[DONE]"));
    end.push_str("0\r\n\r\n");
    connection.send(end.as_bytes())
}
