import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.data.packing import Packer, token_dtype

UINT16 = np.dtype(np.uint16)
streams = st.lists(st.lists(st.integers(0, 65535), max_size=40), max_size=8)


def packed(pieces, seq_len):
    packer = Packer(seq_len, UINT16)
    samples = [packer.add(np.array(piece, UINT16)) for piece in pieces]
    return np.concatenate([np.empty((0, seq_len + 1), UINT16), *samples]), packer


@given(streams, st.integers(1, 9))
def test_every_token_but_the_first_is_predicted_exactly_once_and_in_order(pieces, seq_len):
    samples, packer = packed(pieces, seq_len)
    stream = [token for piece in pieces for token in piece]
    predicted = samples[:, 1:].ravel().tolist()
    context = stream[:1] if len(samples) else []
    assert context + predicted + packer.left_over.tolist() == stream
    assert (samples[:, 0].tolist()) == stream[: len(samples) * seq_len : seq_len]


@given(streams, st.integers(1, 9))
def test_samples_do_not_depend_on_the_pieces_that_a_stream_arrives_in(pieces, seq_len):
    whole, _ = packed([[token for piece in pieces for token in piece]], seq_len)
    samples, packer = packed(pieces, seq_len)
    assert np.array_equal(samples, whole)
    assert packer.samples == len(whole)


@given(streams, st.integers(1, 9))
def test_fewer_tokens_than_a_sample_are_left_over(pieces, seq_len):
    _, packer = packed(pieces, seq_len)
    assert len(packer.left_over) <= (seq_len - 1 if packer.samples else seq_len)


@pytest.mark.parametrize("vocab_size, dtype", [(4096, "uint16"), (65535, "uint16"), (65536, "uint32")])
def test_ids_are_as_small_as_the_vocabulary_allows(vocab_size, dtype):
    assert token_dtype(vocab_size) == np.dtype(dtype)
