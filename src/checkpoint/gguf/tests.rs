use proptest::prelude::*;

use super::*;
use crate::checkpoint::write::{GgufWriter, TensorSpec};

/// A file that is written field by field, so that fields can lie.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    /// Magic, version 3 and the two counts.
    fn new(tensors: u64, pairs: u64) -> Self {
        Raw(MAGIC.to_vec()).u32(3).u64(tensors).u64(pairs)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u32(self, n: u32) -> Self {
        self.bytes(&n.to_le_bytes())
    }

    fn u64(self, n: u64) -> Self {
        self.bytes(&n.to_le_bytes())
    }

    fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A key and a value's type.
    fn pair(self, key: &str, kind: u32) -> Self {
        self.string(key).u32(kind)
    }

    /// A key, the type of an array, its element type and its length.
    fn array(self, key: &str, element: u32, len: u64) -> Self {
        self.pair(key, 9).u32(element).u64(len)
    }

    /// An entry of a tensor; dimensions as the file has them, fastest first.
    fn tensor(self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        let head = self.string(name).u32(dimensions.len() as u32);
        dimensions.iter().fold(head, |head, &n| head.u64(n)).u32(kind).u64(offset)
    }

    /// Zeros up to the next multiple of 32, and `len` more.
    fn data(mut self, len: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self
    }

    fn parse(&self) -> Result<Contents> {
        parse(&self.0, Path::new("broken.gguf"))
    }
}

/// A valid file with every kind of value and two tensors.
fn valid() -> Vec<u8> {
    let metadata = BTreeMap::from([
        ("architecture".to_owned(), Value::String("qwen2".to_owned())),
        ("block_count".to_owned(), Value::Unsigned(24)),
        ("large".to_owned(), Value::Unsigned(1 << 40)),
        ("negative".to_owned(), Value::Signed(-5)),
        ("epsilon".to_owned(), Value::Float(0.5)),
        ("flag".to_owned(), Value::Bool(true)),
        ("types".to_owned(), Value::Integers(vec![1, -2, 3])),
        ("scores".to_owned(), Value::Floats(vec![0.25, -1.5])),
        ("tokens".to_owned(), Value::Strings(vec!["a".to_owned(), "é".to_owned(), String::new()])),
    ]);
    let specs = [("norm", BlockType::F32, vec![3]), ("embedding", BlockType::Q8_0, vec![2, 64])]
        .map(|(name, kind, shape)| TensorSpec { name: name.to_owned(), kind, shape });
    let mut writer = GgufWriter::new(Vec::new(), &metadata, &specs).unwrap();
    writer.tensor(&[1; 12]).unwrap();
    writer.tensor(&[2; 136]).unwrap();
    writer.finish().unwrap()
}

/// What a reader of tensors relies on.
fn assert_consistent(contents: &Contents, file: &[u8]) {
    for tensor in &contents.tensors {
        let bytes = &file[tensor.range.clone()];
        assert_eq!(bytes.len(), tensor.kind.row_bytes(tensor.shape.iter().product()), "{tensor:?}");
    }
}

#[test]
fn every_value_type_is_read() {
    let scalars: [(u32, &[u8], Value); 11] = [
        (0, &[200], Value::Unsigned(200)),
        (1, &[200], Value::Signed(-56)),
        (2, &[1, 2], Value::Unsigned(513)),
        (3, &[0xff, 0xff], Value::Signed(-1)),
        (4, &[1, 0, 0, 128], Value::Unsigned((1 << 31) + 1)),
        (5, &[0, 0, 0, 128], Value::Signed(-(1 << 31))),
        (6, &1.5f32.to_le_bytes(), Value::Float(1.5)),
        (7, &[1], Value::Bool(true)),
        (10, &u64::MAX.to_le_bytes(), Value::Unsigned(u64::MAX)),
        (11, &i64::MIN.to_le_bytes(), Value::Signed(i64::MIN)),
        (12, &0.1f64.to_le_bytes(), Value::Float(0.1)),
    ];
    for (id, bytes, expected) in scalars {
        let contents = Raw::new(0, 1).pair("key", id).bytes(bytes).parse().unwrap();
        assert_eq!(contents.metadata["key"], expected, "type {id}");
    }
}

#[test]
fn arrays_of_every_element_type_are_read() {
    let arrays: [(u32, u64, &[u8], Value); 8] = [
        (0, 2, &[1, 255], Value::Integers(vec![1, 255])),
        (1, 2, &[1, 255], Value::Integers(vec![1, -1])),
        (3, 1, &[254, 255], Value::Integers(vec![-2])),
        (4, 1, &[255; 4], Value::Integers(vec![u32::MAX.into()])),
        (5, 0, &[], Value::Integers(vec![])),
        (7, 2, &[0, 1], Value::Integers(vec![0, 1])),
        (12, 1, &0.1f64.to_le_bytes(), Value::Floats(vec![0.1])),
        (8, 1, &[2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i'], Value::Strings(vec!["hi".to_owned()])),
    ];
    for (element, len, bytes, expected) in arrays {
        let contents = Raw::new(0, 1).array("key", element, len).bytes(bytes).parse().unwrap();
        assert_eq!(contents.metadata["key"], expected, "element type {element}");
    }
}

#[test]
fn version_2_is_read_as_version_3() {
    let mut file = valid();
    file[4] = 2;
    let contents = parse(&file, Path::new("v2.gguf")).unwrap();
    assert_eq!((contents.version, contents.tensors.len()), (2, 2));
}

#[test]
fn dimensions_are_turned_to_slowest_first() {
    let contents = Raw::new(1, 0).tensor("t", &[32, 3, 2], 8, 0).data(34 * 6).parse().unwrap();
    assert_eq!(contents.tensors[0].shape, [2, 3, 32]);
    assert_eq!(contents.tensors[0].range.len(), 34 * 6);
}

#[test]
fn the_alignment_of_the_metadata_moves_the_data() {
    let raw = Raw::new(1, 1).pair("general.alignment", 4).u32(4096).tensor("t", &[1], 0, 4096);
    let mut file = raw.0;
    file.resize(8196, 0);
    let contents = parse(&file, Path::new("aligned.gguf")).unwrap();
    assert_eq!(contents.tensors[0].range, 8192..8196);
}

/// Defects by what the message must say.
fn defects() -> Vec<(&'static str, Raw)> {
    let pair = |kind| Raw::new(0, 1).pair("key", kind);
    let version = |n: u32| Raw(MAGIC.to_vec()).u32(n).u64(0).u64(0);
    let tensor =
        |dimensions: &[u64], kind, offset| Raw::new(1, 0).tensor("t", dimensions, kind, offset).data(1024);
    let alignment = |n| Raw::new(0, 1).pair("general.alignment", 4).u32(n);
    vec![
        ("magic needs 4 bytes", Raw(b"GGU".to_vec())),
        ("magic is not GGUF", Raw(b"GGML".to_vec()).u32(3).u64(0).u64(0)),
        ("version is 1", version(1)),
        ("version is 4", version(4)),
        ("version is big-endian", version(3u32.swap_bytes())),
        ("tensor count is 4294967296", Raw::new(1 << 32, 0)),
        ("metadata count is 18446744073709551615", Raw::new(0, u64::MAX)),
        ("length of key of metadata pair 0 is 1152921504606846976", Raw::new(0, 1).u64(1 << 60).u64(0)),
        ("key of metadata pair 0 is not UTF-8", Raw::new(0, 1).u64(1).bytes(&[0xff]).u32(7).bytes(&[1])),
        ("metadata key has the unknown value type 13", pair(13)),
        ("metadata key needs 8 bytes", pair(10).u32(0)),
        ("metadata key is 7, not a boolean", pair(7).bytes(&[7])),
        ("length of metadata key is 99", pair(8).u64(99)),
        ("metadata key is not UTF-8", pair(8).u64(2).bytes(&[0xc3, 0x28])),
        ("metadata key has the unknown element type 13", Raw::new(0, 1).array("key", 13, 0)),
        ("metadata key is an array of arrays", Raw::new(0, 1).array("key", 9, 0)),
        ("length of metadata key is 4611686018427387904", Raw::new(0, 1).array("key", 4, 1 << 62)),
        ("length of metadata key is 2", Raw::new(0, 1).array("key", 8, 2).u64(0)),
        ("length of metadata key[1] is 5", Raw::new(0, 1).array("key", 8, 2).string("x").u64(5)),
        ("metadata key[1] is not UTF-8", Raw::new(0, 1).array("key", 8, 2).string("x").u64(1).bytes(&[0x80])),
        ("metadata key[1] is 2, not a boolean", Raw::new(0, 1).array("key", 7, 2).bytes(&[0, 2])),
        ("metadata key[0] is 18446744073709551615", Raw::new(0, 1).array("key", 10, 1).u64(u64::MAX)),
        ("metadata key occurs twice", Raw::new(0, 2).pair("key", 4).u32(1).pair("key", 4).u32(1)),
        ("metadata general.alignment is 24, not a power of two", alignment(24)),
        ("metadata general.alignment is 0, not a power of two", alignment(0)),
        ("length of name of tensor 0 is 1000", Raw::new(1, 0).u64(1000).data(64)),
        ("number of dimensions of tensor t is 5", tensor(&[1; 5], 0, 0)),
        ("dimension 1 of tensor t is 0", tensor(&[4, 0], 0, 0)),
        ("tensor t has the shape", tensor(&[1 << 40, 1 << 40], 0, 0)),
        ("tensor t has rows of 33 values, which is no multiple of Q8_0's block of 32", tensor(&[33], 8, 0)),
        ("tensor t has the type NVFP4, which is not supported yet", tensor(&[256], 40, 0)),
        ("tensor t has the type number 99, which is not supported yet", tensor(&[256], 99, 0)),
        ("tensor t has the offset 4, which is no multiple of the alignment 32", tensor(&[1], 0, 4)),
        ("tensor t has 4 bytes at offset 1024 of the data", tensor(&[1], 0, 1024)),
        ("tensor t has 4 bytes at offset 18446744073709551584", tensor(&[1], 0, u64::MAX - 31)),
        ("tensor t has 4096 bytes at offset 0 of the data", tensor(&[1024], 0, 0)),
        ("tensor t occurs twice", Raw::new(2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(64)),
        (
            "tensor u overlaps tensor t",
            Raw::new(2, 0).tensor("t", &[16], 0, 0).tensor("u", &[1], 0, 32).data(64),
        ),
    ]
}

#[test]
fn each_defect_is_named_with_file_and_field() {
    for (expected, raw) in defects() {
        let message = raw.parse().expect_err(expected).to_string();
        assert!(
            message.starts_with(&format!("broken.gguf: {expected}")),
            "'{message}' does not say '{expected}'"
        );
    }
}

#[test]
fn a_file_cut_anywhere_before_its_last_byte_of_data_is_an_error() {
    let file = valid();
    let end = parse(&file, Path::new("whole.gguf")).unwrap().tensors[1].range.end;
    for len in 0..end {
        let message = parse(&file[..len], Path::new("cut.gguf")).expect_err("cut").to_string();
        assert!(message.starts_with("cut.gguf: ") && message.contains("bytes"), "{len}: {message}");
    }
    assert_consistent(&parse(&file[..end], Path::new("cut.gguf")).unwrap(), &file);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let head = [&MAGIC[..], &3u32.to_le_bytes()].concat();
        let _ = parse(&bytes, Path::new("random.gguf"));
        let _ = parse(&[head, bytes].concat(), Path::new("random.gguf"));
    }

    #[test]
    fn a_changed_file_is_an_error_or_consistent(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut file = valid();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if cut {
            file.truncate(len.index(file.len()));
        }
        if let Ok(contents) = parse(&file, Path::new("changed.gguf")) {
            assert_consistent(&contents, &file);
        }
    }

    #[test]
    fn a_changed_count_is_an_error_or_consistent(at in any::<prop::sample::Index>(), count in any::<u64>(), shift in 0..64u32) {
        let mut file = valid();
        let at = at.index(file.len() - 8);
        file[at..at + 8].copy_from_slice(&(count >> shift).to_le_bytes());
        if let Ok(contents) = parse(&file, Path::new("changed.gguf")) {
            assert_consistent(&contents, &file);
        }
    }
}
