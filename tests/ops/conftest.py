import pytest
import torch


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request):
    return request.param


@pytest.fixture
def with_threads():
    """Calls a function once for every number of threads and returns the list of results."""
    before = torch.get_num_threads()

    def run(function, counts=(1, 2, 3)):
        results = []
        for count in counts:
            torch.set_num_threads(count)
            results.append(function())
        return results

    yield run
    torch.set_num_threads(before)
