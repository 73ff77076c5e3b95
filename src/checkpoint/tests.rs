use std::fs;

use ::safetensors::tensor::TensorView;
use ::safetensors::{Dtype, serialize_to_file};
use tempfile::TempDir;

use super::write::{GgufWriter, TensorSpec, write_gguf};
use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn spec(name: &str, kind: BlockType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), kind, shape: shape.to_owned() }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The message of an open that must fail, without the folder's name.
fn failure(path: &Path) -> String {
    let message = Checkpoint::open(path).expect_err("must not open").to_string();
    let folder =
        path.parent().expect("a parent").to_string_lossy().into_owned() + std::path::MAIN_SEPARATOR_STR;
    message.replace(&folder, "")
}

mod any_path {
    use super::*;

    #[test]
    fn a_file_of_another_kind_is_refused_with_its_first_bytes() {
        let folder = folder();
        let path = folder.path().join("x.txt");
        fs::write(&path, "Hello, reader").unwrap();
        assert_eq!(
            failure(&path),
            "x.txt: is not a GGUF or safetensors file (starts with \"Hello, re\"); \
             pensive runs GGUF files and Hugging Face folders"
        );
    }

    #[test]
    fn an_empty_file_is_refused() {
        let folder = folder();
        let path = folder.path().join("empty.gguf");
        fs::write(&path, "").unwrap();
        assert!(failure(&path).starts_with("empty.gguf: is not a GGUF or safetensors file (it is empty)"));
    }

    #[test]
    fn a_path_that_does_not_exist_is_named() {
        let folder = folder();
        assert_eq!(
            failure(&folder.path().join("absent.gguf")),
            "absent.gguf: there is no such file or folder"
        );
    }

    #[test]
    fn a_folder_without_config_names_the_gguf_files_in_it() {
        let folder = folder();
        let inner = folder.path().join("models");
        fs::create_dir(&inner).unwrap();
        assert_eq!(failure(&inner), "models: has no config.json: a folder must be a Hugging Face repository");
        fs::write(inner.join("b.gguf"), "").unwrap();
        fs::write(inner.join("a.gguf"), "").unwrap();
        assert!(failure(&inner).ends_with("; or name a file in it: a.gguf, b.gguf"));
    }
}

mod tensor {
    use super::*;

    #[test]
    fn a_tensor_in_memory_has_rows_columns_and_values() {
        let tensor =
            Tensor::from_bytes("t", BlockType::F32, &[2, 3], floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!((tensor.rows(), tensor.columns()), (2, 3));
        assert_eq!(tensor.values(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn advice_on_pages_leaves_memory_as_it_is() {
        let tensor = Tensor::from_bytes("t", BlockType::F32, &[2], floats(&[1.0, 2.0]));
        tensor.drop_pages();
        tensor.populate();
        assert_eq!(tensor.values(), [1.0, 2.0]);
    }

    #[test]
    fn a_vector_is_one_row_and_a_scalar_one_value() {
        let vector = Tensor::from_bytes("v", BlockType::F32, &[2], floats(&[1.0, 2.0]));
        assert_eq!((vector.rows(), vector.columns()), (1, 2));
        let scalar = Tensor::from_bytes("s", BlockType::F32, &[], floats(&[7.0]));
        assert_eq!(scalar.values(), [7.0]);
    }

    #[test]
    #[should_panic(expected = "bytes of tensor t")]
    fn a_tensor_in_memory_needs_exactly_its_bytes() {
        Tensor::from_bytes("t", BlockType::Q8_0, &[32], vec![0; 33]);
    }
}

mod metadata {
    use super::*;

    fn sample() -> GgufMetadata {
        GgufMetadata::new(
            "m.gguf",
            BTreeMap::from([
                ("layers".to_owned(), Value::Unsigned(24)),
                ("signed".to_owned(), Value::Signed(24)),
                ("negative".to_owned(), Value::Signed(-1)),
                ("large".to_owned(), Value::Unsigned(1 << 40)),
                ("epsilon".to_owned(), Value::Float(0.5)),
                ("name".to_owned(), Value::String("R1".to_owned())),
                ("tokens".to_owned(), Value::Strings(vec!["a".to_owned()])),
            ]),
        )
    }

    #[test]
    fn values_are_read_by_type_and_integers_of_either_sign_where_they_fit() {
        let metadata = sample();
        assert_eq!(metadata.require::<u64>("layers").unwrap(), 24);
        assert_eq!(metadata.require::<u32>("signed").unwrap(), 24);
        assert_eq!(metadata.require::<usize>("layers").unwrap(), 24);
        assert_eq!(metadata.require::<f32>("epsilon").unwrap(), 0.5);
        assert_eq!(metadata.require::<f64>("layers").unwrap(), 24.0);
        assert_eq!(metadata.require::<&str>("name").unwrap(), "R1");
        assert_eq!(metadata.require::<&[String]>("tokens").unwrap(), ["a"]);
        assert_eq!(metadata.find::<bool>("absent").unwrap(), None);
        assert_eq!(metadata.get("layers"), Some(&Value::Unsigned(24)));
    }

    #[test]
    fn errors_name_the_file_the_key_and_the_types() {
        let metadata = sample();
        let of = |e: Error| e.to_string();
        assert_eq!(
            of(metadata.require::<u64>("name").unwrap_err()),
            "m.gguf: metadata name is a string, not a non-negative integer"
        );
        assert_eq!(
            of(metadata.find::<u32>("large").unwrap_err()),
            "m.gguf: metadata large is 1099511627776, not a 32-bit non-negative integer"
        );
        assert_eq!(
            of(metadata.find::<usize>("negative").unwrap_err()),
            "m.gguf: metadata negative is -1, not a non-negative integer"
        );
        assert!(
            of(metadata.require::<u64>("absent").unwrap_err())
                .starts_with("m.gguf: metadata absent is missing")
        );
    }
}

mod gguf_files {
    use super::*;

    /// Values that survive a round trip as they are.
    fn values() -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("general.name".to_owned(), Value::String("Tiny Ä".to_owned())),
            ("small".to_owned(), Value::Unsigned(7)),
            ("large".to_owned(), Value::Unsigned(u64::MAX)),
            ("negative".to_owned(), Value::Signed(-7)),
            ("very.negative".to_owned(), Value::Signed(i64::MIN)),
            ("epsilon".to_owned(), Value::Float(f64::from(1e-6f32))),
            ("flag".to_owned(), Value::Bool(false)),
            ("types".to_owned(), Value::Integers(vec![1, -1, 6])),
            ("wide".to_owned(), Value::Integers(vec![1 << 40])),
            ("scores".to_owned(), Value::Floats(vec![-0.5, 3.0])),
            ("tokens".to_owned(), Value::Strings(vec!["Ġthe".to_owned(), String::new()])),
            ("empty".to_owned(), Value::Strings(vec![])),
        ])
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = folder();
        let path = folder.path().join("tiny.gguf");
        let row: Vec<f32> = (0..64).map(|i| i as f32 / 8.0).collect();
        let mut blocks = vec![0; BlockType::Q8_0.row_bytes(64)];
        crate::quant::quantize(BlockType::Q8_0, &row, &mut blocks);
        let tensors = [
            (spec("norm", BlockType::F32, &[3]), floats(&[1.0, 2.0, 3.0])),
            (spec("weight", BlockType::Q8_0, &[2, 32]), blocks.clone()),
        ];
        write_gguf(&path, &values(), &tensors).unwrap();

        let checkpoint = Checkpoint::open(&path).unwrap();
        let Metadata::Gguf(metadata) = &checkpoint.metadata else { panic!("GGUF metadata") };
        assert_eq!(**metadata, values());
        assert_eq!(metadata.file(), path);
        assert_eq!(checkpoint.name(), Some("Tiny Ä"));
        assert_eq!(checkpoint.tensor("norm").unwrap().values(), [1.0, 2.0, 3.0]);
        let weight = checkpoint.tensor("weight").unwrap();
        assert_eq!(
            (weight.kind, &weight.shape[..], weight.bytes()),
            (BlockType::Q8_0, &[2, 32][..], &blocks[..])
        );
        assert_eq!(checkpoint.total_bytes(), 12 + 68);
        let message = checkpoint.tensor("absent").unwrap_err().to_string();
        assert!(message.ends_with("tiny.gguf: has no tensor 'absent' (2 others)"), "{message}");
    }

    #[test]
    fn a_file_of_metadata_alone_opens() {
        let folder = folder();
        let path = folder.path().join("vocabulary.gguf");
        write_gguf::<Vec<u8>>(&path, &values(), &[]).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!((checkpoint.tensors.len(), checkpoint.total_bytes()), (0, 0));
    }

    #[test]
    fn a_larger_alignment_is_written_and_read() {
        let folder = folder();
        let path = folder.path().join("aligned.gguf");
        let metadata = BTreeMap::from([("general.alignment".to_owned(), Value::Unsigned(256))]);
        let tensors = ["a", "b"].map(|name| (spec(name, BlockType::F32, &[1]), floats(&[name.len() as f32])));
        write_gguf(&path, &metadata, &tensors).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len() % 256, 0);
        assert_eq!(Checkpoint::open(&path).unwrap().tensor("b").unwrap().values(), [1.0]);
    }

    #[test]
    fn the_writer_refuses_what_is_inconsistent() {
        let none = BTreeMap::new();
        let new = |specs: &[TensorSpec]| GgufWriter::new(Vec::new(), &none, specs);
        let twice = [spec("a", BlockType::F32, &[1]), spec("a", BlockType::F32, &[1])];
        assert_eq!(new(&twice).err().unwrap().to_string(), "tensor a is given twice");
        let partial = [spec("a", BlockType::Q4_K, &[255])];
        assert!(new(&partial).err().unwrap().to_string().starts_with("tensor a has rows of 255 values"));
        let mut writer = new(&[spec("a", BlockType::F32, &[2])]).unwrap();
        assert_eq!(writer.tensor(&[0; 4]).unwrap_err().to_string(), "tensor a has 4 bytes, not 8");
        let unfinished = new(&[spec("a", BlockType::F32, &[2])]).unwrap();
        assert_eq!(unfinished.finish().unwrap_err().to_string(), "tensor a was announced but not written");
    }
}

mod split_files {
    use super::*;

    const NAMES: [&str; 3] = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];

    /// A part with one tensor, whose value is its number.
    fn write_part(folder: &Path, file: &str, no: u64, tensor: &str, total: u64) {
        let metadata = BTreeMap::from([
            ("part".to_owned(), Value::Unsigned(no)),
            ("split.no".to_owned(), Value::Unsigned(no)),
            ("split.count".to_owned(), Value::Unsigned(3)),
            ("split.tensors.count".to_owned(), Value::Signed(total as i64)),
        ]);
        write_gguf(
            folder.join(file),
            &metadata,
            &[(spec(tensor, BlockType::F32, &[1]), floats(&[no as f32]))],
        )
        .unwrap();
    }

    fn whole() -> TempDir {
        let folder = folder();
        for (no, (file, tensor)) in NAMES.into_iter().zip(["a", "b", "c"]).enumerate() {
            write_part(folder.path(), file, no as u64, tensor, 3);
        }
        folder
    }

    #[test]
    fn any_part_opens_all_of_them() {
        let folder = whole();
        for name in NAMES {
            let checkpoint = Checkpoint::open(folder.path().join(name)).unwrap();
            assert_eq!(checkpoint.files, NAMES.map(|name| folder.path().join(name)));
            assert_eq!(checkpoint.tensors.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
            assert_eq!(checkpoint.tensor("c").unwrap().values(), [2.0]);
            let Metadata::Gguf(metadata) = &checkpoint.metadata else { panic!("GGUF metadata") };
            assert_eq!(metadata.require::<u64>("part").unwrap(), 0);
        }
    }

    #[test]
    fn a_missing_part_is_named() {
        let folder = whole();
        fs::remove_file(folder.path().join(NAMES[1])).unwrap();
        let message = failure(&folder.path().join(NAMES[2]));
        assert_eq!(message, "m-00002-of-00003.gguf: part 2 of 3 is missing: download it to this place");
    }

    #[test]
    fn a_renamed_part_is_refused() {
        let folder = whole();
        fs::rename(folder.path().join(NAMES[0]), folder.path().join("model.gguf")).unwrap();
        let message = failure(&folder.path().join("model.gguf"));
        assert!(
            message.starts_with("model.gguf: metadata split.count is 3, but the file is not named"),
            "{message}"
        );
    }

    #[test]
    fn parts_that_disagree_are_refused_with_the_field() {
        let folder = whole();
        write_part(folder.path(), NAMES[1], 2, "b", 3);
        let message = failure(&folder.path().join(NAMES[0]));
        assert_eq!(message, "m-00002-of-00003.gguf: metadata split.no is 2, but the parts make it 1");
        write_part(folder.path(), NAMES[1], 1, "a", 3);
        let message = failure(&folder.path().join(NAMES[0]));
        assert_eq!(message, "m-00002-of-00003.gguf: tensor a occurs in an earlier part too");
        write_part(folder.path(), NAMES[0], 0, "a", 9);
        let message = failure(&folder.path().join(NAMES[0]));
        assert_eq!(
            message,
            "m-00001-of-00003.gguf: metadata split.tensors.count is 9, but the parts make it 3"
        );
    }
}

mod safetensors_files {
    use super::*;

    fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("a consistent tensor"))
        });
        serialize_to_file(views, None, path).unwrap();
    }

    fn repository() -> TempDir {
        let folder = folder();
        fs::write(folder.path().join("config.json"), r#"{"model_type": "qwen2", "_name_or_path": "tiny"}"#)
            .unwrap();
        folder
    }

    #[test]
    fn a_folder_and_its_file_open_alike() {
        let folder = repository();
        let file = folder.path().join("model.safetensors");
        write(
            &file,
            &[
                ("f32", Dtype::F32, &[1, 2], floats(&[1.5, -2.0])),
                ("f16", Dtype::F16, &[2], vec![0x00, 0x3c, 0x00, 0xc0]),
                ("bf16", Dtype::BF16, &[2], vec![0x80, 0x3f, 0x00, 0xc0]),
            ],
        );
        for path in [folder.path(), &file] {
            let checkpoint = Checkpoint::open(path).unwrap();
            assert_eq!(checkpoint.files, std::slice::from_ref(&file));
            assert_eq!(checkpoint.name(), Some("tiny"));
            assert_eq!(checkpoint.tensor("f32").unwrap().values(), [1.5, -2.0]);
            assert_eq!(checkpoint.tensor("f16").unwrap().values(), [1.0, -2.0]);
            assert_eq!(checkpoint.tensor("bf16").unwrap().values(), [1.0, -2.0]);
            let Metadata::HuggingFace { config, folder: of } = &checkpoint.metadata else {
                panic!("a repository")
            };
            assert_eq!((config["model_type"].as_str(), of.as_path()), (Some("qwen2"), folder.path()));
        }
    }

    #[test]
    fn values_at_an_odd_address_are_read() {
        let folder = repository();
        let header = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} "#;
        assert_eq!(header.len() % 2, 1);
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &1.5f32.to_le_bytes()].concat();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        assert_eq!(Checkpoint::open(folder.path()).unwrap().tensor("t").unwrap().values(), [1.5]);
    }

    /// Two shards under an index, given as JSON.
    fn sharded(index: &str) -> TempDir {
        let folder = repository();
        write(&folder.path().join("s1.safetensors"), &[("a", Dtype::F32, &[1], floats(&[1.0]))]);
        write(&folder.path().join("s2.safetensors"), &[("b", Dtype::F32, &[1], floats(&[2.0]))]);
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        folder
    }

    #[test]
    fn shards_open_by_folder_index_or_one_of_them() {
        let folder = sharded(r#"{"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}"#);
        for file in ["", "model.safetensors.index.json", "s2.safetensors"] {
            let checkpoint = Checkpoint::open(folder.path().join(file)).unwrap();
            assert_eq!(checkpoint.files, ["s1.safetensors", "s2.safetensors"].map(|s| folder.path().join(s)));
            assert_eq!(checkpoint.tensor("b").unwrap().values(), [2.0]);
        }
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let cases = [
            (
                r#"{"weight_map": {"a": "s3.safetensors"}}"#,
                "s3.safetensors: is missing, but model.safetensors.index.json names it",
            ),
            (r#"{"weight_map": {"c": "s1.safetensors"}}"#, "s1.safetensors: has no tensor 'c'"),
            (
                r#"{"weight_map": {"a": "../s1.safetensors"}}"#,
                "model.safetensors.index.json: weight_map names the file '../s1.safetensors' for a",
            ),
            (r#"{"map": 1}"#, "model.safetensors.index.json: is not valid: missing field `weight_map`"),
        ];
        for (index, expected) in cases {
            let folder = sharded(index);
            let message = failure(&folder.path().join("model.safetensors.index.json"));
            assert!(message.starts_with(expected), "'{message}' does not say '{expected}'");
        }
    }

    #[test]
    fn an_unsupported_type_names_the_tensor() {
        let folder = repository();
        let path = folder.path().join("model.safetensors");
        write(&path, &[("ids", Dtype::I64, &[1], vec![0; 8])]);
        assert_eq!(
            failure(&path),
            "model.safetensors: tensor ids is I64, which is not supported (F32, F16, BF16, F8_E4M3 with scales, MXFP4)"
        );
    }

    #[test]
    fn a_cut_file_is_refused() {
        let folder = repository();
        let path = folder.path().join("model.safetensors");
        write(&path, &[("a", Dtype::F32, &[2], floats(&[1.0, 2.0]))]);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(failure(&path).starts_with("model.safetensors: is no whole safetensors file"));
    }

    #[test]
    fn config_json_must_be_there_and_be_an_object() {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        write(&path, &[("a", Dtype::F32, &[1], floats(&[1.0]))]);
        assert_eq!(failure(&path), "config.json: is missing: weights need it beside them");
        fs::write(folder.path().join("config.json"), "[]").unwrap();
        assert_eq!(failure(&path), "config.json: is not a JSON object");
        fs::write(folder.path().join("config.json"), "{").unwrap();
        assert!(failure(&path).starts_with("config.json: is not valid: EOF"));
        fs::remove_file(&path).unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(message.ends_with(
            "has neither model.safetensors nor model.safetensors.index.json: download the weights"
        ));
    }
}

#[test]
fn a_safetensors_file_with_a_dimension_of_0_is_refused() {
    use ::safetensors::{Dtype, tensor::TensorView};
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let ones = 1f32.to_le_bytes();
    let tensors = [
        ("a.weight", TensorView::new(Dtype::F8_E4M3, vec![0, 128], &[]).unwrap()),
        ("a.weight_scale_inv", TensorView::new(Dtype::F32, vec![1], &ones).unwrap()),
    ];
    ::safetensors::serialize_to_file(tensors, None, &folder.path().join("model.safetensors")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("a.weight") && error.contains("[0, 128]"), "{error}");
}
