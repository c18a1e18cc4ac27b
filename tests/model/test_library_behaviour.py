"""What users of transformers expect of any model, for each kind of encoder.

Of the library's common tests (`ModelTesterMixin`, `GenerationTesterMixin`), these do not apply:

- `test_initialization`, `test_can_init_all_missing_weights`: encoder and language model initialise
  themselves. Missing buffers are tested here.
- `test_model_base_model_prefix`, `test_load_save_without_tied_weights` of a base model: there is no
  model without a head. `language_model` and `encoder` can be loaded alone.
- `test_training_gradient_checkpointing` of all parts: the encoder has no gradients.
- `test_sdpa_can_dispatch_composite_models` of the encoder: it computes in float32, with the
  attention that it was published with.
- `test_inputs_embeds_matches_input_ids` with random ids: an id may be a placeholder, which needs
  audio. Tested here with real placeholders.
- `test_feed_forward_chunking`, `test_head_pruning`, `test_torchscript`: removed or for encoders.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import TEXT, clip, small_model
from support.small_encoders import small_encoder
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForMultimodalLM,
    AutoProcessor,
    CompileConfig,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from audiolm import AudioLMForConditionalGeneration, AudioLMProcessor
from audiolm.encoders_audiolm import MimiEncoder
from audiolm.modeling_audiolm import CACHE_NAME, unsaved_buffers

ENCODERS = ("htsat", "mimi_full", "encodec")
QUESTION = "Which tone? A) low B) high"


def build(encoder_type, **fields):
    if encoder_type in ("htsat", "mimi_full"):
        return small_model(encoder_type, **fields)
    torch.manual_seed(0)
    text = LlamaForCausalLM(LlamaConfig(**TEXT))
    encoder = small_encoder(encoder_type)
    options = {"mapper_hidden_size": 32, **fields}
    return AudioLMForConditionalGeneration.from_pretrained_parts(
        encoder_type, encoder, text, **options
    ).eval()


@pytest.fixture(scope="module", params=ENCODERS)
def loaded(request, tokenizer):
    """A model and its processor."""
    model = build(request.param)
    return model, AudioLMProcessor.from_config(model.config, copy.deepcopy(tokenizer))


@pytest.fixture
def model(loaded):
    return loaded[0]


@pytest.fixture
def processor(loaded):
    return loaded[1]


@pytest.fixture
def inputs(processor):
    """Two questions, about one clip and about two."""
    first, second = (clip(0.6), 24000), (clip(0.9, seed=5), 24000)
    return processor(text=[QUESTION, "Which is louder?"], audio=[[first], [first, second]])


@pytest.fixture
def example(processor):
    return processor(text=QUESTION, audio=[(clip(0.6), 24000)])


def generate(model, inputs, **options):
    return model.generate(**inputs, **{"max_new_tokens": 4, "do_sample": False, **options})


def test_forward_returns_hidden_states_and_attentions(model, inputs):
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    layers = model.config.text_config.num_hidden_layers
    length = inputs["input_ids"].shape[1]
    assert len(outputs.hidden_states) == layers + 1
    assert outputs.hidden_states[-1].shape[:2] == (2, length)
    assert len(outputs.attentions) == layers
    assert outputs.attentions[0].shape[-2:] == (length, length)


def test_forward_returns_none_of_them_unasked(model, example):
    outputs = model(**example)
    assert outputs.hidden_states is None
    assert outputs.attentions is None


def test_generate_returns_hidden_states_and_attentions(model, example):
    model.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True}
    outputs = generate(model, example, return_dict_in_generate=True, **options)
    new_tokens = outputs.sequences.shape[1] - example["input_ids"].shape[1]
    assert len(outputs.hidden_states) == new_tokens
    assert len(outputs.attentions) == new_tokens


def test_attention_implementations_agree(model, inputs):
    logits = {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        logits[name] = model(**inputs).logits[:, -1]
    assert torch.allclose(logits["eager"], logits["sdpa"], atol=1e-5)


def test_attention_implementation_of_the_language_model_alone(model):
    model.set_attn_implementation({"text_config": "eager"})
    assert model.language_model.config._attn_implementation == "eager"
    model.set_attn_implementation({"text_config": "sdpa"})
    assert model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("encoder_type", ENCODERS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_resized_embeddings_keep_the_logits_of_earlier_tokens(encoder_type, is_tied, tokenizer):
    model = build(encoder_type)
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    language_model = model.language_model
    if not is_tied:
        language_model.lm_head.weight = torch.nn.Parameter(language_model.lm_head.weight.clone())
        model.config.text_config.tie_word_embeddings = False
        model.config.tie_word_embeddings = False
        language_model.config.tie_word_embeddings = False
    inputs = processor(text=QUESTION, audio=[(clip(0.6), 24000)])
    expected = model(**inputs).logits
    size = model.config.text_config.vocab_size
    model.resize_token_embeddings(size + 8)
    logits = model(**inputs).logits
    assert logits.shape[-1] == size + 8
    assert torch.equal(logits[..., :size], expected)
    head = model.get_output_embeddings().weight
    assert (head is model.get_input_embeddings().weight) == is_tied
    assert model.config.text_config.vocab_size == size + 8


def test_forward_of_embeddings_equals_that_of_ids(model, inputs):
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    logits = model(inputs_embeds=embeddings, **others).logits
    assert torch.equal(logits, model(**inputs).logits)


def test_forward_of_embeddings_without_audio(model, processor):
    inputs = processor(text="What?")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    logits = model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(logits, model(**inputs).logits)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_of_embeddings_equals_that_of_ids(model, inputs, options):
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    expected = generate(model, inputs, **options)[:, inputs["input_ids"].shape[1] :]
    # The clips come first, of which there are more than examples.
    ids = generate(model, {**others, "inputs_embeds": embeddings}, **options)
    assert torch.equal(ids, expected)


def test_forward_of_embeddings_that_miss_placeholders_says_so(model, example):
    embeddings = torch.zeros_like(model.get_input_embeddings()(example["input_ids"]))
    others = {name: value for name, value in example.items() if name != "input_ids"}
    with pytest.raises(ValueError, match="has 0 audio placeholders, but the audio has"):
        model(inputs_embeds=embeddings, **others)


@pytest.mark.parametrize("both", [True, False])
def test_forward_needs_ids_or_embeddings(model, example, both):
    embeddings = model.get_input_embeddings()(example["input_ids"])
    names = {"input_ids": example["input_ids"], "inputs_embeds": embeddings} if both else {}
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(**names)


def test_forward_returns_a_tuple_if_asked(model, example):
    outputs = model(**example, return_dict=False)
    assert isinstance(outputs, tuple)
    assert torch.equal(outputs[0], model(**example).logits)


def test_logits_to_keep_takes_positions(model, example):
    logits = model(**example).logits
    positions = torch.tensor([0, 3])
    chosen = model(**example, logits_to_keep=positions).logits
    assert torch.allclose(chosen, logits[:, positions], atol=1e-5)


def test_audio_features_follow_the_library(model, example):
    audio = {name: example[name] for name in ("input_values", "input_values_mask")}
    outputs = model.get_audio_features(**audio)
    assert isinstance(outputs, BaseModelOutputWithPooling)
    num_placeholders = int((example["input_ids"] == model.config.audio_token_id).sum())
    assert outputs.pooler_output.shape == (num_placeholders, TEXT["hidden_size"])
    assert outputs.last_hidden_state.shape[0] == 1
    features, embeddings = model.get_audio_features(**audio, return_dict=False)
    assert torch.equal(embeddings, outputs.pooler_output)
    assert torch.equal(features, outputs.last_hidden_state)


def test_placeholder_mask_of_ids_equals_that_of_embeddings(model, example):
    embeddings = model.get_input_embeddings()(example["input_ids"])
    mask = model.get_placeholder_mask(example["input_ids"], embeddings)
    assert torch.equal(model.get_placeholder_mask(None, embeddings), mask)


def test_checkpoint_without_buffers_is_loaded_with_those_of_its_config(model, example, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    own = ("mapper.feature_mean", "mapper.feature_std", "encoder.mel_filters", "encoder.window")
    rest = {name: value for name, value in weights.items() if name not in own}
    assert len(rest) < len(weights)
    save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
    reloaded = AudioLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(reloaded(**example).logits, model(**example).logits)


def test_encoder_with_an_unsaved_buffer_is_not_saved(tmp_path):
    model = small_model("mimi_full")
    model.encoder.register_buffer("scale", torch.ones(1), persistent=False)
    with pytest.raises(ValueError, match="the encoder's buffer scale is not persistent"):
        model.save_pretrained(tmp_path)


def test_buffers_of_the_encoders_are_saved(model):
    assert list(unsaved_buffers(model.encoder)) == []


def test_saved_folder_loads_with_the_auto_classes_without_its_code(loaded, example, tmp_path):
    model, processor = loaded
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).encoder_type == model.config.encoder_type
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is type(processor.feature_extractor)
    for processor_class in (AutoProcessor, AudioLMProcessor):
        reloaded = processor_class.from_pretrained(tmp_path)
        assert isinstance(reloaded, AudioLMProcessor)
        inputs = reloaded(text=QUESTION, audio=[(clip(0.6), 24000)])
        assert all(torch.equal(inputs[name], example[name]) for name in example)
    auto_model = AutoModelForMultimodalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(auto_model(**example).logits, model(**example).logits)


@pytest.mark.parametrize("num_clips", [1, 2])
def test_chat_template_makes_the_inputs_of_the_processor(processor, num_clips, tmp_path):
    import soundfile

    paths = []
    for number in range(num_clips):
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], clip(0.6, seed=number), 24000, subtype="FLOAT")
    content = [{"type": "audio", "path": path} for path in paths]
    message = {"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([message], **options)
    expected = processor(text=QUESTION, audio=paths)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.allclose(inputs["input_values"], expected["input_values"], atol=1e-6)


def test_chat_template_takes_several_conversations(processor, tmp_path):
    import soundfile

    path = str(tmp_path / "a.wav")
    soundfile.write(path, clip(0.6), 24000, subtype="FLOAT")
    chats = []
    for num_clips in (1, 2):
        content = [{"type": "audio", "path": path}] * num_clips
        text = {"type": "text", "text": QUESTION}
        chats.append([{"role": "user", "content": [*content, text]}])
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chats, **options)
    expected = processor(text=[QUESTION, QUESTION], audio=[[path], [path, path]])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_processor_names_its_inputs(processor, inputs):
    assert set(inputs) <= set(processor.model_input_names)


def test_processor_decodes(processor):
    ids = processor.tokenizer(["yes", "no"], add_special_tokens=False).input_ids
    assert processor.batch_decode(ids) == ["yes", "no"]
    assert processor.decode(ids[0]) == "yes"


def test_pipeline_answers_as_generate_does(loaded, example):
    model, processor = loaded
    answer = pipeline("any-to-any", model=model, processor=processor)
    samples = processor.feature_extractor.load((clip(0.6), 24000)).numpy()
    outputs = answer(text=QUESTION, audio=[samples], max_new_tokens=4, do_sample=False)
    expected = generate(model, example)[0, example["input_ids"].shape[1] :]
    text = processor.decode(expected, skip_special_tokens=True)
    assert outputs[0]["generated_text"].endswith(text)


def test_assisted_decoding_gives_the_same_text(model, example):
    assistant = copy.deepcopy(model)
    torch.nn.init.normal_(assistant.mapper.linear_2.weight)
    assert torch.equal(
        generate(model, example, assistant_model=assistant), generate(model, example)
    )


def test_sampling_with_one_seed_gives_the_same_text_twice(model, inputs):
    texts = []
    for _ in range(2):
        torch.manual_seed(0)
        texts.append(generate(model, inputs, do_sample=True, num_return_sequences=2))
    assert torch.equal(*texts)
    assert len(texts[0]) == 4


def test_static_cache_gives_the_same_text(model, inputs):
    static = generate(model, inputs, cache_implementation="static")
    assert torch.equal(static, generate(model, inputs))


def test_cache_of_a_prompt_is_continued(model, example):
    """Under the name of the installed transformers."""
    logits = model(**example).logits
    audio = {name: value for name, value in example.items() if name.startswith("input_values")}
    first = model(input_ids=example["input_ids"][:, :-1], **audio, use_cache=True)
    cache = getattr(first, CACHE_NAME)
    last = model(input_ids=example["input_ids"][:, -1:], **{CACHE_NAME: cache}).logits
    assert torch.allclose(last[:, -1], logits[:, -1], atol=1e-5)


def test_half_precision_keeps_the_encoder_in_float32(model, example):
    half = copy.deepcopy(model).half()
    logits = half(**example).logits
    assert logits.isfinite().all()
    assert logits.dtype == torch.float16


def test_compiled_decoding_gives_the_same_text(model, example):
    """On a CPU, the library compiles only if it is told to."""
    compile_config = CompileConfig(backend="eager", fullgraph=False)
    compile_config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compile_config}
    assert torch.equal(generate(model, example, **options), generate(model, example))


@pytest.mark.parametrize(
    "options",
    [{"device_map": "auto"}, {"low_cpu_mem_usage": True}, {"dtype": torch.bfloat16}],
)
def test_options_of_from_pretrained(model, example, options, tmp_path):
    model.save_pretrained(tmp_path)
    reloaded = AudioLMForConditionalGeneration.from_pretrained(tmp_path, **options).eval()
    expected = model(**example).logits
    tolerance = 0.05 if "dtype" in options else 0
    assert torch.allclose(reloaded(**example).logits.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r"mapper\.linear_[12]"])
def test_adapters_of_peft_train_alone(model, example, targets):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=targets))
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert torch.allclose(adapted(**example).logits, model(**example).logits, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(model, processor):
    batch = processor(
        text=QUESTION, audio=[(clip(0.6), 24000)], answer="A) low", padding_side="right"
    )
    gradients = []
    for is_checkpointed in (False, True):
        copied = copy.deepcopy(model).train()
        if is_checkpointed:
            copied.activation_checkpointing_enable({"use_reentrant": False})
        copied(**batch).loss.backward()
        gradients.append(copied.mapper.linear_1.weight.grad)
    assert torch.allclose(*gradients, atol=1e-7)


def test_language_model_is_exported(model):
    embeddings = torch.randn(1, 8, TEXT["hidden_size"])
    body = model.language_model.model
    exported = torch.export.export(
        body, (), {"inputs_embeds": embeddings, "use_cache": False}, strict=False
    )
    outputs = exported.module()(inputs_embeds=embeddings, use_cache=False)
    expected = body(inputs_embeds=embeddings, use_cache=False)
    assert torch.allclose(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5)


def test_encoders_under_test_are_of_three_kinds():
    kinds = {type(build(name).encoder) for name in ENCODERS}
    assert len(kinds) == 3
    assert MimiEncoder in kinds
