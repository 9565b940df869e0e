from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.client("sentence-transformers"), pytest.mark.slow]

TEXTS = ["the quick brown fox", "def add(a, b)", "fox"]
EMBED = """
import json, torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
trust = {"trust_remote_code": True}
words = Transformer(folder, model_args=trust, config_args=trust, tokenizer_args=trust)
model = SentenceTransformer(modules=[words, Pooling(words.get_word_embedding_dimension(), "lasttoken")])
torch.save(torch.tensor(model.encode(texts)), "first.pt")
model.save("embedder")
again = SentenceTransformer("embedder", trust_remote_code=True)
torch.save(torch.tensor(again.encode(texts)), "again.pt")
"""


def test_embeddings(save, without_us, tmp_path):
    """SentenceTransformer: embeddings of padded batches are our last hidden states (1e-5); saved and reloaded

    `Pooling(…, "lasttoken")`, as only a text's last token has seen all of it; `trust_remote_code=True`.
    """
    import json

    from transformers import AutoModel, AutoTokenizer

    folder = save("modern", "")
    without_us(EMBED, folder, json.dumps(TEXTS))
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        wanted = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in TEXTS]
    for name in ("first", "again"):
        found = torch.load(tmp_path / f"{name}.pt")
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)
