//! The wire contract of PROTOCOL.md: messages, errors, and the loop. The standard library only.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::{Add, AddAssign, Div, Mul, Sub};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Why there is no result; the text is for people, or the feature that is not offered.
pub enum Failure {
    InvalidInput(String),
    BadRequest(String),
    Unsupported(String),
}
pub use Failure::{BadRequest, InvalidInput, Unsupported};

pub type Outcome<T> = Result<T, Failure>;

/// Row-major and little-endian, as it travels.
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<i128>,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
pub struct Message {
    pub metadata: Vec<(String, String)>,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Message {
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.metadata.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    pub fn say(&mut self, key: &str, value: impl ToString) {
        self.metadata.push((key.to_string(), value.to_string()));
    }

    pub fn put<T: Float>(&mut self, name: String, shape: &[i128], data: &[T]) {
        let bytes = data.iter().flat_map(|value| value.bytes()).collect();
        self.put_bytes(name, T::NAME, shape, bytes);
    }

    pub fn put_bytes(&mut self, name: String, dtype: &str, shape: &[i128], bytes: Vec<u8>) {
        let (dtype, shape) = (dtype.to_string(), shape.to_vec());
        self.tensors.insert(name, Tensor { dtype, shape, bytes });
    }
}

/// Reads the header of a canonical request: no spaces, no escapes, keys in a known order.
struct Scanner<'a>(&'a str);

impl<'a> Scanner<'a> {
    fn skip(&mut self, text: &str) -> bool {
        let rest = self.0.strip_prefix(text);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn until(&mut self, end: &str) -> &'a str {
        let (found, rest) = self.0.split_once(end).expect("a canonical header");
        self.0 = rest;
        found
    }
}

fn list(text: &str) -> Vec<i128> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts.map(|part| part.parse().expect("integers")).collect()
}

/// `[2,3]` without spaces.
pub fn show(values: &[i128]) -> String {
    let parts: Vec<String> = values.iter().map(i128::to_string).collect();
    format!("[{}]", parts.join(","))
}

/// The next request, or None at the end of the input.
fn read_request(input: &mut impl Read) -> io::Result<Option<Message>> {
    let mut head = Vec::new();
    input.by_ref().take(8).read_to_end(&mut head)?;
    if head.is_empty() {
        return Ok(None);
    }
    let length: [u8; 8] = head.try_into().map_err(|_| io::ErrorKind::UnexpectedEof)?;
    let length = u64::from_le_bytes(length);
    assert!(length <= 16 << 20, "a message begins with the length of its header, not with {length}");
    let mut header = vec![0; length as usize];
    input.read_exact(&mut header)?;
    let header = String::from_utf8_lossy(&header);

    let mut message = Message::default();
    let mut scanner = Scanner(&header);
    assert!(scanner.skip("{\"__metadata__\":{"), "a canonical header begins with __metadata__");
    while !scanner.skip("}") {
        scanner.skip(",");
        scanner.skip("\"");
        let key = scanner.until("\":\"");
        message.say(key, scanner.until("\""));
    }
    let mut places = Vec::new();
    while scanner.skip(",\"") {
        let name = scanner.until("\":{\"dtype\":\"").to_string();
        let dtype = scanner.until("\",\"shape\":[").to_string();
        let shape = list(scanner.until("],\"data_offsets\":["));
        let offsets = list(scanner.until("]}"));
        places.push((name, dtype, shape, offsets[0] as usize..offsets[1] as usize));
    }
    let mut body = vec![0; places.iter().map(|(_, _, _, place)| place.end).max().unwrap_or(0)];
    input.read_exact(&mut body)?;
    for (name, dtype, shape, place) in places {
        message.put_bytes(name, &dtype, &shape, body[place].to_vec());
    }
    Ok(Some(message))
}

fn quoted(text: &str) -> String {
    let mut found = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => found.extend(['\\', letter]),
            '\0'..='\u{1f}' => found.push(' '),
            _ => found.push(letter),
        }
    }
    found + "\""
}

fn write_reply(output: &mut impl Write, reply: &Message) -> io::Result<()> {
    let strings = reply.metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value)));
    let mut header = format!("{{\"__metadata__\":{{{}}}", strings.collect::<Vec<_>>().join(","));
    let mut end = 0;
    for (name, Tensor { dtype, shape, bytes }) in &reply.tensors {
        let begin = end;
        end += bytes.len();
        let shape = show(shape);
        header +=
            &format!(",{}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}", quoted(name));
    }
    header += "}";
    let mut message = (header.len() as u64).to_le_bytes().to_vec();
    message.extend(header.bytes());
    reply.tensors.values().for_each(|tensor| message.extend(&tensor.bytes));
    output.write_all(&message)?;
    output.flush()
}

/// The types of numbers: how they travel, and the arithmetic that the block needs.
pub trait Float:
    Copy
    + Default
    + PartialOrd
    + AddAssign
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + std::iter::Sum
{
    const NAME: &'static str;
    fn of(value: f64) -> Self;
    fn root(self) -> Self;
    fn bytes(self) -> Vec<u8>;
    fn read(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! float {
    ($type:ty, $name:literal) => {
        impl Float for $type {
            const NAME: &'static str = $name;
            fn of(value: f64) -> Self {
                value as $type
            }
            fn root(self) -> Self {
                self.sqrt()
            }
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn read(bytes: &[u8]) -> Vec<Self> {
                let parts = bytes.chunks_exact(size_of::<$type>());
                parts.map(|part| <$type>::from_le_bytes(part.try_into().expect("a chunk"))).collect()
            }
        }
    };
}
float!(f32, "F32");
float!(f64, "F64");

/// Answers requests with `answer`, which gets the op, until `stop` or the end of standard input.
pub fn serve(answer: impl Fn(&str, &Message) -> Outcome<Message>) -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    while let Some(request) = read_request(&mut input)? {
        let op = request.get("op").unwrap_or("");
        if op == "stop" {
            break;
        }
        let mut reply = Message::default();
        reply.say("id", request.get("id").unwrap_or(""));
        let mut fail = |code: &str, message: &str| {
            for (key, value) in [("status", "error"), ("code", code), ("message", message)] {
                reply.say(key, value);
            }
        };
        match catch_unwind(AssertUnwindSafe(|| answer(op, &request))) {
            Ok(Ok(Message { metadata, tensors })) => {
                reply.say("status", "ok");
                reply.metadata.extend(metadata);
                reply.tensors = tensors;
            }
            Ok(Err(Unsupported(feature))) => {
                reply.say("status", "unsupported");
                reply.say("feature", feature);
            }
            Ok(Err(InvalidInput(message))) => fail("invalid_input", &message),
            Ok(Err(BadRequest(message))) => fail("bad_request", &message),
            Err(_) => fail("internal", "a panic; see standard error"),
        }
        write_reply(&mut output, &reply)?;
    }
    Ok(())
}
