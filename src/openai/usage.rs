//! The `usage` object of an answer, brought into disjoint classes.
//!
//! What providers disagree on is settled by their own `total_tokens`: it tells whether reasoning, or what was read from a cache,
//! stands beside the counts or within them.

use super::Endpoint;
use super::json::fields;
use crate::usage::Usage;

/// More tokens than this in one number are a mistake of the provider, not a use.
const TOKENS_MAX: u64 = 1_000_000_000;

/// The numbers of one `usage` object, as they stand on the wire. Absent and null are `None`.
#[derive(Clone, Copy, Debug, Default)]
struct Reported {
    prompt: Option<u64>,
    completion: Option<u64>,
    total: Option<u64>,
    cached: u64,
    cache_written: u64,
    audio_in: u64,
    image_in: u64,
    reasoning: u64,
    audio_out: u64,
    image_out: u64,
}

/// Reads a `usage` object. `None` when it is not one that can be billed by: no object, no counts, or a number that is negative,
/// fractional or absurd.
pub(super) fn read(endpoint: Endpoint, json: &str) -> Option<Usage> {
    let reported = Reported::read(json)?;
    let prompt = reported.prompt?;
    let (input, input_total) = reported.input(prompt);
    let Some(output_total) = reported.output_total(input_total) else {
        // What has no output may leave it out.
        return (!endpoint.has_output()).then_some(input);
    };
    let mut left = output_total;
    let mut take = |tokens: u64| {
        let taken = tokens.min(left);
        left -= taken;
        taken
    };
    let reasoning = take(reported.reasoning);
    let audio_out = take(reported.audio_out);
    let image_out = take(reported.image_out);
    Some(Usage { output: left, reasoning, audio_out, image_out, ..input })
}

impl Reported {
    fn read(json: &str) -> Option<Reported> {
        let [prompt, completion, total, prompt_details, completion_details, cache_hit] =
            fields(json, WIRE).ok()?;
        let [cached, cache_written, audio_in, image_in] = details(prompt_details, PROMPT_DETAILS)?;
        let [reasoning, audio_out, image_out] = details(completion_details, COMPLETION_DETAILS)?;
        let cached = number(cached)?.or(number(cache_hit)?);
        Some(Reported {
            prompt: number(prompt)?,
            completion: number(completion)?,
            total: number(total)?,
            cached: cached.unwrap_or(0),
            cache_written: number(cache_written)?.unwrap_or(0),
            audio_in: number(audio_in)?.unwrap_or(0),
            image_in: number(image_in)?.unwrap_or(0),
            reasoning: number(reasoning)?.unwrap_or(0),
            audio_out: number(audio_out)?.unwrap_or(0),
            image_out: number(image_out)?.unwrap_or(0),
        })
    }

    /// The input by class, and its sum. What passed through a cache is within the prompt, unless it is more than all of it.
    fn input(&self, prompt: u64) -> (Usage, u64) {
        let through_cache = self.cached + self.cache_written;
        let total = if through_cache > prompt { prompt + through_cache } else { prompt };
        let mut left = total;
        let mut take = |tokens: u64| {
            let taken = tokens.min(left);
            left -= taken;
            taken
        };
        let cache_read = take(self.cached);
        let cache_write_5m = take(self.cache_written);
        let audio_in = take(self.audio_in);
        let image_in = take(self.image_in);
        (Usage { input: left, cache_read, cache_write_5m, audio_in, image_in, ..Usage::default() }, total)
    }

    /// All output, reasoning included, wherever it was counted.
    fn output_total(&self, input_total: u64) -> Option<u64> {
        let by_total = self.total.and_then(|total| total.checked_sub(input_total));
        let Some(completion) = self.completion else { return by_total };
        // Without a total, reasoning that is more than the completion cannot be a part of it.
        let outside = if by_total.is_none() && self.reasoning > completion { self.reasoning } else { 0 };
        Some((completion + outside).max(by_total.unwrap_or(0)))
    }
}

/// The keys of a `usage` object; the last is of providers that split the prompt in two.
const WIRE: [&str; 6] = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "prompt_cache_hit_tokens",
];
const PROMPT_DETAILS: [&str; 4] = ["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens"];
const COMPLETION_DETAILS: [&str; 3] = ["reasoning_tokens", "audio_tokens", "image_tokens"];

/// The values of details that are there; the outer `None` when they are not an object.
fn details<'a, const N: usize>(json: Option<&'a str>, names: [&str; N]) -> Option<[Option<&'a str>; N]> {
    json.map_or(Some([None; N]), |json| fields(json, names).ok())
}

/// A count; the outer `None` when it is not one.
fn number(json: Option<&str>) -> Option<Option<u64>> {
    let Some(json) = json else { return Some(None) };
    json.parse().ok().filter(|tokens| *tokens <= TOKENS_MAX).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(json: &str) -> Option<Usage> {
        read(Endpoint::ChatCompletions, json)
    }

    #[test]
    fn classes_within_the_prompt_and_the_completion_are_taken_out_of_them() {
        let json = r#"{"prompt_tokens":1000,"completion_tokens":500,"total_tokens":1500,
            "prompt_tokens_details":{"cached_tokens":600,"cache_write_tokens":100,"audio_tokens":50,"unknown":-1},
            "completion_tokens_details":{"reasoning_tokens":400,"audio_tokens":20,"rejected_prediction_tokens":3}}"#;
        let want = Usage {
            input: 250,
            cache_read: 600,
            cache_write_5m: 100,
            audio_in: 50,
            output: 80,
            reasoning: 400,
            audio_out: 20,
            ..Usage::default()
        };
        assert_eq!(usage(json), Some(want));
    }

    #[test]
    fn reasoning_beside_the_completion_is_added_once() {
        let want = Some(Usage { input: 10_120, output: 1_499, reasoning: 2_809, ..Usage::default() });
        for total in ["14428", "null"] {
            let json = format!(
                r#"{{"prompt_tokens":10120,"completion_tokens":1499,"total_tokens":{total},
                "completion_tokens_details":{{"reasoning_tokens":2809}}}}"#
            );
            assert_eq!(usage(&json), want, "{total}");
        }
    }

    #[test]
    fn the_total_settles_what_the_parts_leave_out() {
        let of = |input, output| Some(Usage { input, output, ..Usage::default() });
        assert_eq!(usage(r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":40}"#), of(10, 30));
        assert_eq!(usage(r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":0}"#), of(10, 5));
        assert_eq!(usage(r#"{"prompt_tokens":10,"total_tokens":12}"#), of(10, 2));
        let cached = r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":115,"prompt_tokens_details":{"cached_tokens":100}}"#;
        assert_eq!(usage(cached), Some(Usage { input: 10, cache_read: 100, output: 5, ..Usage::default() }));
        let split = r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":6}"#;
        assert_eq!(usage(split), Some(Usage { input: 6, cache_read: 4, output: 5, ..Usage::default() }));
    }

    #[test]
    fn what_cannot_be_billed_by_is_no_usage() {
        for json in [
            "null",
            "{}",
            "[]",
            "7",
            r#"{"prompt_tokens":-5,"completion_tokens":"x"}"#,
            r#"{"prompt_tokens":5}"#,
            r#"{"completion_tokens":5}"#,
            r#"{"prompt_tokens":5,"completion_tokens":1.5}"#,
            r#"{"prompt_tokens":5,"completion_tokens":99999999999999}"#,
            r#"{"prompt_tokens":5,"completion_tokens":5,"completion_tokens_details":{"reasoning_tokens":-1}}"#,
            r#"{"prompt_tokens":5,"prompt_tokens":7,"completion_tokens":5}"#,
        ] {
            assert_eq!(usage(json), None, "{json}");
        }
    }

    #[test]
    fn embeddings_have_input_alone() {
        let usage = read(Endpoint::Embeddings, r#"{"prompt_tokens":5}"#);
        assert_eq!(usage, Some(Usage { input: 5, ..Usage::default() }));
    }
}
