//! A vocabulary of single characters, as a sentencepiece model.

use serde_json::{Value, json};

/// The number of sentinels that every T5 tokenizer appends to its vocabulary.
pub const EXTRA_IDS: usize = 100;

/// `<pad>`, `</s>` and `<unk>` with the ids of every T5, the mark of the start of a word, and the letters of Latin,
/// Greek and Cyrillic.
pub fn vocabulary() -> Vec<String> {
    let marks = ["<pad>", "</s>", "<unk>", "▁"].map(str::to_owned);
    let letters = ['!'..='~', '¡'..='ž', 'Α'..='ώ', 'Ѐ'..='џ'].into_iter().flatten();
    marks.into_iter().chain(letters.map(String::from)).collect()
}

/// `tokenizer_config.json`
pub fn config() -> Value {
    json!({
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "extra_ids": EXTRA_IDS,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    })
}

/// `spiece.model`
///
/// # Source
/// `sentencepiece_model.proto` of google/sentencepiece: `ModelProto`, `TrainerSpec`, `NormalizerSpec`.
pub fn sentencepiece(vocabulary: &[String]) -> Vec<u8> {
    let mut model = Message::default();
    for (id, piece) in vocabulary.iter().enumerate() {
        // The kinds are normal (1), unknown (2) and control (3).
        let kind = match id {
            0 | 1 => 3,
            2 => 2,
            _ => 1,
        };
        model.message(1, Message::default().bytes(1, piece.as_bytes()).float(2, -1.0).varint(3, kind));
    }
    // Declares a Unigram model and the ids of the unknown, start (none), end and padding tokens.
    let trainer = Message::default();
    model.message(2, trainer.varint(3, 1).varint(40, 2).varint(41, -1i64 as u64).varint(42, 1).varint(43, 0));
    model.message(3, Message::default().bytes(1, b"identity"));
    model.0
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn tag(&mut self, field: u64, wire_type: u64) {
        self.number(field << 3 | wire_type);
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn varint(mut self, field: u64, number: u64) -> Self {
        self.tag(field, 0);
        self.number(number);
        self
    }

    fn float(mut self, field: u64, number: f32) -> Self {
        self.tag(field, 5);
        self.0.extend(number.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.tag(field, 2);
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn message(&mut self, field: u64, message: Message) {
        *self = std::mem::take(self).bytes(field, &message.0);
    }
}
