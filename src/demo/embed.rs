//! Embeddings of the demo model: the same text has the same vector, of length one. They mean nothing.

use super::ask::{EmbeddingAsk, Encoding};
use super::wire::{Embedding, Embeddings, Fault, Vector};
use sha2::{Digest, Sha256};

pub(super) fn answer(ask: &EmbeddingAsk, prompt_tokens: u64) -> Result<Embeddings, Fault> {
    let dimensions = ask.dimensions()?;
    let vectors = ask.texts()?.into_iter().map(|text| vector(&text, dimensions));
    let data = vectors
        .enumerate()
        .map(|(index, numbers)| {
            let embedding = match ask.encoding_format {
                Encoding::Float => Vector::Numbers(numbers),
                Encoding::Base64 => Vector::Text(base64(&numbers)),
            };
            Embedding::new(index, embedding)
        })
        .collect();
    Ok(Embeddings::new(data, prompt_tokens))
}

/// As many numbers as are asked for, drawn from the text's hash.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let block =
        |number: usize| Sha256::new().chain_update(number.to_le_bytes()).chain_update(text).finalize();
    let numbers: Vec<f32> = (0..)
        .flat_map(|number| block(number).into_iter().collect::<Vec<u8>>())
        .take(dimensions)
        .map(|byte| f32::from(byte) - 127.5)
        .collect();
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    numbers.into_iter().map(|number| number / length).collect()
}

/// RFC 4648, with padding.
fn base64(numbers: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let six = (bits >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_of_length_one_and_the_texts_own() {
        for dimensions in [1, 8, 3_072] {
            let one = vector("Hi", dimensions);
            let length = one.iter().map(|number| number * number).sum::<f32>();
            assert_eq!(one.len(), dimensions);
            assert!((length - 1.0).abs() < 1e-4, "{length}");
            assert_eq!(one, vector("Hi", dimensions));
        }
        assert_ne!(vector("Hi", 8), vector("Ho", 8));
    }

    #[test]
    fn base64_is_little_endian_floats_with_padding() {
        // python3: base64.b64encode(struct.pack('<2f', 0.5, -0.25))
        assert_eq!(base64(&[0.5, -0.25]), "AAAAPwAAgL4=");
        assert_eq!(base64(&[0.5]), "AAAAPw==");
    }
}
