//! What a request used, in classes that do not overlap.
//!
//! Promises: the classes are disjoint, so that cost is a plain sum; totals follow the convention of the OpenAI API.
//! Refuses to know: what a unit costs, and how a provider spells it.

use serde::{Deserialize, Serialize};

/// Units used, by disjoint class. A token is in exactly one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    /// Input tokens that are in no other class.
    #[serde(skip_serializing_if = "is_zero")]
    pub input: u64,
    /// Input tokens read from the provider's prompt cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_read: u64,
    /// Input tokens written to a cache kept for five minutes.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_5m: u64,
    /// Input tokens written to a cache kept for an hour.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_1h: u64,
    /// Input audio tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub audio_in: u64,
    /// Input image tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub image_in: u64,
    /// Output tokens that are in no other class.
    #[serde(skip_serializing_if = "is_zero")]
    pub output: u64,
    /// Output tokens of hidden or shown reasoning.
    #[serde(skip_serializing_if = "is_zero")]
    pub reasoning: u64,
    /// Output audio tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub audio_out: u64,
    /// Output image tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub image_out: u64,
    /// Seconds of audio or video.
    #[serde(skip_serializing_if = "is_zero")]
    pub seconds: u64,
    /// Characters of text to speak.
    #[serde(skip_serializing_if = "is_zero")]
    pub characters: u64,
    /// Images made.
    #[serde(skip_serializing_if = "is_zero")]
    pub images: u64,
    /// Calls of a tool that the provider runs and bills apiece.
    #[serde(skip_serializing_if = "is_zero")]
    pub calls: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(units: &u64) -> bool {
    *units == 0
}

/// A class of [`Usage`]. The names are those of the price book and of the `usage` object of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is described at the field of Usage of the same name")]
pub enum Class {
    Input,
    CacheRead,
    CacheWrite5m,
    CacheWrite1h,
    AudioIn,
    ImageIn,
    Output,
    Reasoning,
    AudioOut,
    ImageOut,
    Seconds,
    Characters,
    Images,
    Calls,
}

impl Class {
    /// Every class, in the order of [`Usage`].
    pub const ALL: [Class; 14] = [
        Class::Input,
        Class::CacheRead,
        Class::CacheWrite5m,
        Class::CacheWrite1h,
        Class::AudioIn,
        Class::ImageIn,
        Class::Output,
        Class::Reasoning,
        Class::AudioOut,
        Class::ImageOut,
        Class::Seconds,
        Class::Characters,
        Class::Images,
        Class::Calls,
    ];

    /// The name in price files, the store and the `usage` object.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Input => "input",
            Class::CacheRead => "cache_read",
            Class::CacheWrite5m => "cache_write_5m",
            Class::CacheWrite1h => "cache_write_1h",
            Class::AudioIn => "audio_in",
            Class::ImageIn => "image_in",
            Class::Output => "output",
            Class::Reasoning => "reasoning",
            Class::AudioOut => "audio_out",
            Class::ImageOut => "image_out",
            Class::Seconds => "seconds",
            Class::Characters => "characters",
            Class::Images => "images",
            Class::Calls => "calls",
        }
    }

    /// The class of that name.
    pub fn parse(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.as_str() == name)
    }
}

impl Usage {
    /// Every class with its units. Destructured, so that a new field does not compile until it has a class.
    pub fn by_class(&self) -> [(Class, u64); 14] {
        let Usage {
            input,
            cache_read,
            cache_write_5m,
            cache_write_1h,
            audio_in,
            image_in,
            output,
            reasoning,
            audio_out,
            image_out,
            seconds,
            characters,
            images,
            calls,
        } = *self;
        [
            (Class::Input, input),
            (Class::CacheRead, cache_read),
            (Class::CacheWrite5m, cache_write_5m),
            (Class::CacheWrite1h, cache_write_1h),
            (Class::AudioIn, audio_in),
            (Class::ImageIn, image_in),
            (Class::Output, output),
            (Class::Reasoning, reasoning),
            (Class::AudioOut, audio_out),
            (Class::ImageOut, image_out),
            (Class::Seconds, seconds),
            (Class::Characters, characters),
            (Class::Images, images),
            (Class::Calls, calls),
        ]
    }

    /// The units of a class, to be changed.
    pub fn class_mut(&mut self, class: Class) -> &mut u64 {
        match class {
            Class::Input => &mut self.input,
            Class::CacheRead => &mut self.cache_read,
            Class::CacheWrite5m => &mut self.cache_write_5m,
            Class::CacheWrite1h => &mut self.cache_write_1h,
            Class::AudioIn => &mut self.audio_in,
            Class::ImageIn => &mut self.image_in,
            Class::Output => &mut self.output,
            Class::Reasoning => &mut self.reasoning,
            Class::AudioOut => &mut self.audio_out,
            Class::ImageOut => &mut self.image_out,
            Class::Seconds => &mut self.seconds,
            Class::Characters => &mut self.characters,
            Class::Images => &mut self.images,
            Class::Calls => &mut self.calls,
        }
    }

    /// All input tokens, cached ones included, as OpenAI counts `prompt_tokens`.
    pub fn input_total(&self) -> u64 {
        [self.input, self.cache_read, self.cache_write_5m, self.cache_write_1h, self.audio_in, self.image_in]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// All output tokens, reasoning included, as OpenAI counts `completion_tokens`.
    pub fn output_total(&self) -> u64 {
        [self.output, self.reasoning, self.audio_out, self.image_out].into_iter().fold(0, u64::saturating_add)
    }
}

/// Who counted the usage that a request is billed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UsageSource {
    /// The provider said it.
    Reported,
    /// The gateway counted the text that passed.
    Counted,
}

impl UsageSource {
    /// The name in the store and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            UsageSource::Reported => "reported",
            UsageSource::Counted => "counted",
        }
    }
}

/// How a request that was sent to a provider ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The whole answer passed.
    Completed,
    /// The provider answered with an error. Billed 0.
    UpstreamError,
    /// The provider answered nothing in time. Billed 0.
    UpstreamTimeout,
    /// The provider cut its answer short. Billed: input and what passed.
    UpstreamCut,
    /// The client left before the end. Billed: input and what passed.
    ClientGone,
    /// The gateway stopped, or a fault in it ended the request. Billed: input and what passed.
    Shutdown,
    /// The process died; its journal was replayed. Billed: input and what was last noted to have passed.
    GatewayDied,
    /// The account's credit could not cover more of the answer. Billed: input and what passed.
    CreditExhausted,
}

impl Outcome {
    /// Every outcome. The journal keeps the place in this list: new ones go to its end.
    pub const ALL: [Outcome; 8] = [
        Outcome::Completed,
        Outcome::UpstreamError,
        Outcome::UpstreamTimeout,
        Outcome::UpstreamCut,
        Outcome::ClientGone,
        Outcome::Shutdown,
        Outcome::GatewayDied,
        Outcome::CreditExhausted,
    ];

    /// The name in the store, on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::UpstreamError => "upstream_error",
            Outcome::UpstreamTimeout => "upstream_timeout",
            Outcome::UpstreamCut => "upstream_cut",
            Outcome::ClientGone => "client_gone",
            Outcome::Shutdown => "shutdown",
            Outcome::GatewayDied => "gateway_died",
            Outcome::CreditExhausted => "credit_exhausted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_names_are_the_field_names() {
        let one = Usage {
            input: 1,
            cache_read: 1,
            cache_write_5m: 1,
            cache_write_1h: 1,
            audio_in: 1,
            image_in: 1,
            output: 1,
            reasoning: 1,
            audio_out: 1,
            image_out: 1,
            seconds: 1,
            characters: 1,
            images: 1,
            calls: 1,
        };
        let json = serde_json::to_string(&one).unwrap();
        for class in Class::ALL {
            assert!(json.contains(&format!("\"{}\":1", class.as_str())), "{json}");
            assert_eq!(Class::parse(class.as_str()), Some(class));
        }
        assert_eq!(one.input_total(), 6);
        assert_eq!(one.output_total(), 4);
    }
}
