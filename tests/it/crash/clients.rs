//! Clients that ask without end, whatever becomes of the gateway, and note what they got.

use super::witness::{FIRST_INPUT, MANNERS, Manner, QUICK, Served, Witness, number_in};
use crate::support::gateway::{Account, Gateway, rows_of};
use crate::support::http::{Connection, Reply};
use crate::support::{Request, ms, tokens};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A sequence of numbers that follows from its seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A seed that is told, so that a run can be repeated.
pub(super) fn seed() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let seed = super::number("WEIR_SEED", u64::try_from(now).unwrap());
    eprintln!("WEIR_SEED={seed}");
    seed
}

/// An answer that began, as its client saw it.
#[derive(Clone, Debug)]
pub(super) struct Note {
    request_id: String,
    prompt: String,
    /// The text that came.
    said: String,
    /// It came to its end, `[DONE]` where it is a stream.
    is_whole: bool,
}

/// What one client did.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) notes: Vec<Note>,
    /// Requests that were written, at least in part.
    pub(super) asked: u64,
    /// Refusals by status and code.
    pub(super) refused: BTreeMap<(u16, String), u64>,
}

impl Notes {
    pub(super) fn whole(&self) -> usize {
        self.notes.iter().filter(|note| note.is_whole).count()
    }

    fn add(&mut self, other: Notes) {
        self.notes.extend(other.notes);
        self.asked += other.asked;
        for (kind, count) in other.refused {
            *self.refused.entry(kind).or_default() += count;
        }
    }
}

/// Clients at work.
#[derive(Debug)]
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Notes>>,
}

impl Clients {
    /// One client for each of these lists of accounts; it takes turns among them.
    pub(super) fn start(address: SocketAddr, seed: u64, accounts: &[Vec<Account>]) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |(at, accounts): (usize, &Vec<Account>)| {
            let (stop, accounts) = (Arc::clone(&stop), accounts.clone());
            let mut random = Random::new(seed.wrapping_add(at as u64));
            thread::spawn(move || {
                let mut notes = Notes::default();
                while !stop.load(Ordering::SeqCst) {
                    let account = &accounts[usize::try_from(random.below(accounts.len() as u64)).unwrap()];
                    ask(address, account, &mut random, &mut notes);
                }
                notes
            })
        };
        let threads = accounts.iter().enumerate().map(client).collect();
        Clients { stop, threads }
    }

    /// Lets them end what they are at, and collects their notes.
    pub(super) fn end(mut self) -> Notes {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Notes::default();
        for thread in self.threads.drain(..) {
            all.add(thread.join().expect("a client does not fail"));
        }
        all
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn ask(address: SocketAddr, account: &Account, random: &mut Random, notes: &mut Notes) {
    let Ok(stream) = TcpStream::connect(address) else { return thread::sleep(ms(5)) };
    let mut connection = Connection::over(stream, address);
    // The first ones are quick; of the slow ones there are a few, so that each kill finds some in their middle.
    let manners = if random.below(8) == 0 { &MANNERS[QUICK..] } else { &MANNERS[..QUICK] };
    let manner = manners[usize::try_from(random.below(manners.len() as u64)).unwrap()];
    // Some holds are larger than what is billed in the end, some smaller.
    let padding = if random.below(2) == 0 { "" } else { &" long".repeat(2_000) };
    let prompt = format!("{} {}{padding}", manner.name(), random.below(1 << 40));
    let body = json!({
        "model": "tiny", "max_tokens": 50, "stream": manner.is_stream(),
        "messages": [{"role": "user", "content": prompt}],
    });
    let request = Request::post("/v1/chat/completions", body.to_string()).key(&account.key);
    notes.asked += 1;
    // A gateway that is killed answers nothing.
    let answered = connection.send(&request.to_bytes(address)).and_then(|()| connection.reply());
    let Ok(reply) = answered else { return };
    if reply.status != 200 {
        // A refusal may be cut, too.
        let code = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default()["error"]["code"].clone();
        *notes.refused.entry((reply.status, code.as_str().unwrap_or_default().to_owned())).or_default() += 1;
        return thread::sleep(ms(10));
    }
    let request_id = reply.header("x-request-id").expect("x-request-id").to_owned();
    let (said, is_whole) = said(&reply, manner);
    notes.notes.push(Note { request_id, prompt, said, is_whole });
}

/// The text of an answer, as far as it came, and whether it came to its end.
fn said(reply: &Reply, manner: Manner) -> (String, bool) {
    if !manner.is_stream() {
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
        return (text, reply.whole);
    }
    let all = reply.text();
    let mut text = String::new();
    for event in all.split_inclusive("\n\n").filter_map(|event| event.strip_suffix("\n\n")) {
        let data = event.strip_prefix("data: ").unwrap_or_default();
        let chunk: Value = serde_json::from_str(data).unwrap_or_default();
        text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    (text, all.ends_with("data: [DONE]\n\n"))
}

/// What the witnesses and the books agree on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) rows: usize,
    pub(super) whole: usize,
    pub(super) partial: usize,
    /// Billed by what the journal had of them.
    pub(super) died: usize,
    /// Of those, with what had passed.
    pub(super) died_with_output: usize,
    pub(super) lost: usize,
    pub(super) doubled: usize,
}

/// Holds the rows of these accounts against what clients and provider saw. `cut` is how many requests at most can have been noted as sent
/// without having come to the provider: one a client each time that the process died.
#[track_caller]
pub(super) fn verify(gateway: &Gateway, witness: &Witness, notes: &Notes, cut: u64) -> Verdict {
    let accounts: Vec<String> =
        gateway.lock().accounts.iter().map(|(account, _)| account.id.clone()).collect();
    let rows: Vec<Value> = accounts.iter().flat_map(|account| rows_of(&gateway.cli, account)).collect();
    let served = witness.served();
    let mut verdict = Verdict { rows: rows.len(), ..Verdict::default() };
    let mut by_id: HashMap<&str, &Value> = HashMap::new();
    let mut inputs = HashSet::new();
    for row in &rows {
        let is_again = by_id.insert(row["request_id"].as_str().unwrap(), row).is_some();
        verdict.doubled += usize::from(is_again);
        let has_died = row["outcome"] == "gateway_died";
        verdict.died += usize::from(has_died);
        verdict.died_with_output += usize::from(has_died && row["output_tokens"] != 0);
        if row["usage_source"] == "reported" {
            let input = row["usage"]["input"].as_u64().unwrap();
            verdict.doubled += usize::from(!inputs.insert(input));
            let of =
                input.checked_sub(FIRST_INPUT).and_then(|number| served.get(usize::try_from(number).ok()?));
            let of = of.unwrap_or_else(|| panic!("a bill for what no provider was asked: {row}"));
            assert_eq!(Some(&row["usage"]), of.billed(input - FIRST_INPUT).as_ref(), "{row}");
        }
    }
    for note in &notes.notes {
        match by_id.get(note.request_id.as_str()) {
            None => {
                eprintln!("lost: {note:?}");
                verdict.lost += 1;
            }
            Some(row) => agree(note, row, &served),
        }
        *if note.is_whole { &mut verdict.whole } else { &mut verdict.partial } += 1;
    }
    let (came, all) = (served.len() as u64, rows.len() as u64);
    assert!(came <= all && all <= came + cut, "{all} rows for {came} requests that came to the provider");
    assert!(all <= notes.asked, "{all} rows for {} requests", notes.asked);
    assert_eq!((verdict.lost, verdict.doubled), (0, 0), "{verdict:?}");
    verdict
}

/// One answer as its client saw it, against its bill.
fn agree(note: &Note, row: &Value, served: &[Served]) {
    let number = number_in(&note.said);
    let of = number.map(|number| (number, &served[usize::try_from(number).unwrap()]));
    let (input, output) = (row["input_tokens"].as_u64().unwrap(), row["output_tokens"].as_u64().unwrap());
    let counted_input = 3 + tokens("user") + tokens(&note.prompt) + 3;
    match row["outcome"].as_str().unwrap() {
        "completed" => {
            let Some((number, of)) = of else {
                assert!(!note.is_whole, "a whole answer says its number: {note:?}");
                return;
            };
            if note.is_whole {
                assert_eq!(note.said, of.text, "{row}");
            }
            match of.billed(number) {
                Some(usage) => assert_eq!(row["usage"], usage, "{row}"),
                None => assert_eq!((input, output), (counted_input, tokens(&of.text)), "{row}"),
            }
        }
        "gateway_died" => {
            assert!(!note.is_whole, "whole, and billed as cut: {note:?} {row}");
            // Before the answer is under way it is our estimate, a quarter of the bytes, and the count from then on.
            let bytes = note.prompt.len() as u64;
            let estimate = bytes / 4..=bytes / 4 + 64;
            assert!(input == counted_input || estimate.contains(&input), "{counted_input}, {bytes}: {row}");
            let most = of.map_or(0, |(_, of)| tokens(&of.text));
            assert!(output <= most.max(tokens(&note.said)), "{output} of {most}: {row}");
        }
        other => panic!("{other}: {note:?} {row}"),
    }
}
