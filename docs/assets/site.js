// The filter of the index of questions: shows the items that contain every word.
const field = document.getElementById("filter");
if (field) {
  const items = [...document.querySelectorAll(".md-content li")];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const item of items) {
      const text = item.textContent.toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
    }
  });
}
